"""Where a worker's own gradient can be seen before it is averaged: DDP's communication hook, or the recorder."""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from ..gradients.sharing import shared_recorder
from ..gradients.workers import GradientSketch

NOISE_STEPS = 4  # of those that are watched, one in which single examples are looked at


@dataclass
class WorkerGradient:
    """One worker's gradient of one optimizer step, in the units of the averaged one.

    Attributes:
        square: |g_k|^2.
        sketch: projection of g_k. (k,)
        small: mean squared norm of the gradients of smaller batches within this worker, or NaN where unknown.
        of_small: examples in such a batch.
        examples: of this worker in the step.
        mean_square: |gbar|^2 of the averaged gradient, or NaN where only projections tell.
    """

    square: float
    sketch: Tensor
    small: float
    of_small: float
    examples: float
    mean_square: float


class HookedGradients:
    """Reads DDP's buckets: exact norms, and a sketch; the reduction is DDP's own.

    Noise comes from the first micro-batch where there are several, which `.grad` holds before anything is reduced, and
    else from the norms of single examples, which the recorder gives in every
    fourth step that is watched.

    Args:
        ddp: the wrapped model; no communication hook is registered on it.
        probes: size of the sketch.
        pairs: whether batches are [chosen; rejected].
    """

    name = "DDP's communication hook"

    def __init__(self, ddp: DistributedDataParallel, probes: int, pairs: bool):
        self._ddp, self._pairs = ddp, pairs
        self._sketch = GradientSketch(probes)
        self._names = {id(p): name for name, p in ddp.module.named_parameters()}
        self._stack = ExitStack()
        self._recorder: Any = None
        self._watched = 0
        self.on = False
        ddp.register_comm_hook(self, _hook)

    def of(self, ddp: DistributedDataParallel) -> bool:
        """Whether this is the hook of a model."""
        return self._ddp is ddp

    def begin(self, args: Any) -> None:
        """Watch one optimizer step."""
        self.on = True
        self._parts: list[Tensor] = []
        self._squares: list[Tensor] = []
        self._means: list[Tensor] = []
        self._rows = self._micro_batches = 0
        self._small = self._of_small = float("nan")
        self._several = args.gradient_accumulation_steps > 1
        if not self._several and self._watched % NOISE_STEPS == 0:
            mode = "pairs" if self._pairs else "norms"
            self._recorder = self._stack.enter_context(shared_recorder(self._ddp, mode, documents=True))
        self._watched += 1

    def micro_batch(self, rows: int, last: bool) -> None:
        """Take in a micro-batch whose backward pass is done, of `rows` examples."""
        self._rows += rows
        self._micro_batches += 1
        if self._several and not last and self._micro_batches == 1:
            grads = [p.grad for p in self._ddp.parameters() if p.grad is not None]
            self._small = float(torch.stack([g.float().square().sum() for g in grads]).sum())
            self._of_small = rows
        elif self._recorder is not None:
            squares = self._recorder.norms().square()
            if self._pairs:
                squares = squares.view(2, -1).sum(0) + 2 * self._recorder.pair_products()
            self._small, self._of_small = float(squares.mean()), 1.0

    def end(self) -> WorkerGradient:
        """Return what was seen, once the step is done."""
        self.close()
        factor = (self._rows / self._of_small) ** 2 if self._of_small == self._of_small else float("nan")
        return WorkerGradient(
            square=float(torch.stack(self._squares).sum()),
            sketch=torch.stack(self._parts).sum(0),
            small=self._small * factor,
            of_small=self._of_small,
            examples=self._rows,
            mean_square=float(torch.stack(self._means).sum()),
        )

    def close(self) -> None:
        """Stop watching."""
        self.on = False
        self._stack.close()
        self._recorder = None

    def see(self, bucket: GradBucket) -> None:
        """Take in a bucket before it is reduced."""
        self._squares.append(bucket.buffer().float().square().sum())
        for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
            self._parts.append(self._sketch(self._names[id(parameter)], gradient))

    def see_mean(self, reduced: Tensor) -> None:
        """Take in a bucket after it was reduced."""
        self._means.append(reduced.float().square().sum())


def _hook(state: HookedGradients, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    if not state.on:
        return allreduce_hook(None, bucket)
    state.see(bucket)
    reduced = allreduce_hook(None, bucket)

    def then(future: Any) -> Tensor:
        value = future.value()
        value = value[0] if isinstance(value, list) else value
        state.see_mean(value)
        return value

    return reduced.then(then)


class RecordedGradients:
    """Reads projections of the rows' gradients off activations: for FSDP2 and ZeRO, which shard `.grad`.

    Args:
        model: as callbacks get it.
        probes: number of projections.
        pairs: whether batches are [chosen; rejected].
    """

    name = "projections of the recorder"

    def __init__(self, model: nn.Module, probes: int, pairs: bool):
        self._model, self._probes, self._pairs = model, probes, pairs
        self._stack = ExitStack()

    def begin(self, args: Any) -> None:
        """Watch one optimizer step."""
        needs = {"mode": "projections", "projections": self._probes, "documents": True}
        self._recorder = self._stack.enter_context(shared_recorder(self._model, **needs))
        self._rows: list[Tensor] = []

    def micro_batch(self, rows: int, last: bool) -> None:
        """Take in a micro-batch whose backward pass is done."""
        projected = self._recorder.projections()
        if self._pairs:
            projected = projected.view(2, -1, projected.shape[1]).sum(0)
        self._rows.append(projected)

    def end(self) -> WorkerGradient:
        """Return what was seen, once the step is done."""
        self.close()
        rows = torch.cat(self._rows)
        total = rows.sum(0)
        return WorkerGradient(
            square=float(total.double().square().sum()),
            sketch=total,
            small=float(rows.double().square().sum(1).mean()) * len(rows) ** 2,
            of_small=1.0,
            examples=len(rows),
            mean_square=float("nan"),
        )

    def close(self) -> None:
        """Stop watching."""
        self._stack.close()
