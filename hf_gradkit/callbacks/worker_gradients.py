"""Where a worker's own gradient can be seen before it is averaged: DDP's communication hook, or the parameters'."""

import logging
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from .._text import listing
from ..gradients.errors import GradientRecordError
from ..gradients.own import own_gradients
from ..gradients.parameters import unwrap
from ..gradients.sharing import shared_recorder
from ..gradients.workers import GradientSketch

logger = logging.getLogger(__name__)

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


class SingleExamples:
    """Records single examples' gradients in every fourth step that is watched, for how much they vary.

    Args:
        model: as callbacks get it.
        pairs: whether batches are [chosen; rejected], two rows an example.
    """

    def __init__(self, model: nn.Module, pairs: bool):
        self._model, self._pairs = model, pairs
        self._stack = ExitStack()
        self._recorder: Any = None
        self._watched = 0
        self._warned = False

    def begin(self) -> None:
        """Begin a step."""
        if self._watched % NOISE_STEPS == 0:
            mode = "pairs" if self._pairs else "norms"
            self._recorder = self._stack.enter_context(shared_recorder(self._model, mode, documents=True))
        self._watched += 1

    def mean_square(self) -> float:
        """Return the mean squared norm of an example's gradient in the backward pass that was, or NaN."""
        if self._recorder is None:
            return float("nan")
        if self._recorder.uncovered:
            if not self._warned:
                logger.warning(
                    f"The gradients of {listing(self._recorder.uncovered)} cannot be recorded by example, so what the "
                    "workers' direction should be stays unknown. Accumulate gradients over two micro-batches or more "
                    "to have it from these."
                )
            self._warned = True
            return float("nan")
        squares = self._recorder.norms().square()
        if self._pairs:
            squares = squares.view(2, -1).sum(0) + 2 * self._recorder.pair_products()
        return float(squares.mean())

    def close(self) -> None:
        """End the step."""
        self._stack.close()
        self._recorder = None


class HookedGradients:
    """Reads DDP's buckets: exact norms, and a sketch; the reduction is DDP's own.

    Noise comes from the first micro-batch where there are several, which `.grad` holds before anything is reduced, and
    else from the norms of single examples.

    Args:
        ddp: the wrapped model; no communication hook is registered on it.
        probes: size of the sketch.
        pairs: whether batches are [chosen; rejected].
    """

    name = "DDP's communication hook"

    def __init__(self, ddp: DistributedDataParallel, probes: int, pairs: bool):
        self._ddp = ddp
        self._sketch = GradientSketch(probes)
        self._names = {id(p): name for name, p in ddp.module.named_parameters()}
        self._examples = SingleExamples(ddp, pairs)
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
        self._rows: list[int] = []
        self._small = self._of_small = float("nan")
        if args.gradient_accumulation_steps == 1:
            self._examples.begin()

    def micro_batch(self, rows: int, last: bool) -> None:
        """Take in a micro-batch whose backward pass is done, of `rows` examples."""
        self._rows.append(rows)
        if not last and len(self._rows) == 1:
            grads = [p.grad for p in self._ddp.parameters() if p.grad is not None]
            self._small, self._of_small = float(_square(grads)), rows
        elif last and len(self._rows) == 1:
            self._small, self._of_small = self._examples.mean_square(), 1.0

    def end(self) -> WorkerGradient:
        """Return what was seen, once the step is done."""
        self.close()
        return WorkerGradient(
            square=float(torch.stack(self._squares).sum()),
            sketch=torch.stack(self._parts).sum(0),
            small=self._small * (sum(self._rows) / self._of_small) ** 2,
            of_small=self._of_small,
            examples=sum(self._rows),
            mean_square=float(torch.stack(self._means).sum()),
        )

    def close(self) -> None:
        """Stop watching."""
        self.on = False
        self._examples.close()

    def see(self, bucket: GradBucket) -> None:
        """Take in a bucket before it is reduced."""
        self._squares.append(_square([bucket.buffer()]))
        for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
            self._parts.append(self._sketch(self._names[id(parameter)], gradient))

    def see_mean(self, reduced: Tensor) -> None:
        """Take in a bucket after it was reduced."""
        self._means.append(_square([reduced]))


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


class OwnGradients:
    """Reads the parameters' gradients as the backward pass has them: for FSDP2 and ZeRO, which shard `.grad`.

    Noise comes from the micro-batches where there are several, and else from the norms of single examples. With
    several, the norm of their sum is the sketch's, since nowhere is the sum in one piece.

    Args:
        model: as callbacks get it.
        probes: size of the sketch.
        pairs: whether batches are [chosen; rejected].
    """

    name = "hooks on the parameters"

    def __init__(self, model: nn.Module, probes: int, pairs: bool):
        self._model = unwrap(model)
        self._sketch = GradientSketch(probes)
        self._examples = SingleExamples(model, pairs)
        self._stack = ExitStack()

    def begin(self, args: Any) -> None:
        """Watch one optimizer step."""
        self._rows: list[int] = []
        self._squares: list[float] = []  # of each micro-batch
        self._sketches: list[Tensor] = []
        self._small = float("nan")
        self._forget()
        if args.gradient_accumulation_steps == 1:
            self._examples.begin()
        self._stack.enter_context(own_gradients(self._model, self._see))

    def micro_batch(self, rows: int, last: bool) -> None:
        """Take in a micro-batch whose backward pass is done, of `rows` examples."""
        self._check()
        sketch = torch.stack(self._parts).sum(0)
        whole = len(self._names) == len(set(self._names))
        self._squares.append(float(torch.stack(self._norms).square().sum() if whole else sketch.square().sum()))
        self._sketches.append(sketch)
        self._rows.append(rows)
        if last and len(self._rows) == 1:
            self._small = self._examples.mean_square()
        self._forget()

    def end(self) -> WorkerGradient:
        """Return what was seen, once the step is done."""
        self.close()
        total, rows, several = torch.stack(self._sketches).sum(0), sum(self._rows), len(self._rows) > 1
        of_small = self._rows[0] if several else 1.0
        small = self._squares[0] if several else self._small
        return WorkerGradient(
            square=float(total.square().sum()) if several else self._squares[0],
            sketch=total,
            small=small * (rows / of_small) ** 2,
            of_small=of_small,
            examples=rows,
            mean_square=float("nan"),
        )

    def close(self) -> None:
        """Stop watching."""
        self._stack.close()
        self._examples.close()

    def _check(self) -> None:
        """Raise if a parameter got a gradient that was not seen; DeepSpeed's have none at this point."""
        got = {name for name, parameter in self._model.named_parameters() if parameter.grad is not None}
        unseen = sorted(got - set(self._names))
        if unseen or not self._names:
            raise GradientRecordError(
                f"The gradient of {listing(unseen) if unseen else 'every parameter'} did not show in the backward "
                "pass, so WorkerConsistencyCallback cannot compare the workers. Train without torch.compile "
                "(torch_compile=False) and without tensor parallelism, or leave it out."
            )

    def _forget(self) -> None:
        self._names: list[str] = []
        self._norms: list[Tensor] = []
        self._parts: list[Tensor] = []

    def _see(self, name: str, gradient: Tensor) -> None:
        self._names.append(name)
        self._norms.append(torch.linalg.vector_norm(gradient, dtype=torch.float32))
        self._parts.append(self._sketch(name, gradient))


def _square(tensors: list[Tensor]) -> Tensor:
    """Return the squared norm of all entries, in float32. ()"""
    return torch.stack([torch.linalg.vector_norm(x, dtype=torch.float32) for x in tensors]).square().sum()
