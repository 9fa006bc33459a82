"""Where a worker's own gradient can be seen before it is averaged: DDP's communication hook, or the parameters'."""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from .._text import listing
from ..gradients.errors import GradientRecordError
from ..gradients.own import own_gradients
from ..gradients.parameters import unwrap
from ..gradients.workers import GradientSketch
from .single_examples import SingleExamples


@dataclass
class WorkerGradient:
    """One worker's gradient of one optimizer step, in the units of the averaged one.

    Attributes:
        square: |g_k|^2.
        sketch: of g_k. (k,)
        small: mean squared norm of the gradients of smaller batches within this worker, or NaN where unknown.
        of_small: examples in such a batch.
        examples: of this worker in the step.
        mean_square: |gbar|^2 of the averaged gradient, or NaN where only sketches tell.
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
    else from the norms of single examples.

    Args:
        ddp: the wrapped model; no communication hook is registered on it.
        probes: size of the sketch.
        pairs: whether batches are [chosen; rejected].
        compiled: whether torch.compile is around it.
    """

    name = "DDP's communication hook"

    def __init__(self, ddp: DistributedDataParallel, probes: int, pairs: bool, compiled: bool = False):
        self._ddp = ddp
        self._sketch = GradientSketch(probes)
        self._names = {id(p): name for name, p in ddp.module.named_parameters()}
        self._pairs, self._compiled = pairs, compiled
        self.begin_run()
        self.on = False
        ddp.register_comm_hook(self, _hook)
        ddp.register_comm_hook = _refuse_second_hook

    def begin_run(self) -> None:
        """Begin a run: what cannot be recorded is said once in each."""
        self._examples = SingleExamples(self._ddp, self._pairs, self._compiled)

    def of(self, ddp: DistributedDataParallel) -> bool:
        """Whether this is the hook of a model."""
        return self._ddp is ddp

    def begin(self, args: Any) -> None:
        """Watch one optimizer step."""
        self.close()  # a step that never came to its end
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
            small=_of_step(self._small, self._of_small, sum(self._rows)),
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


def _refuse_second_hook(*positional: Any, **keywords: Any) -> None:
    raise RuntimeError(
        "DDP takes one communication hook, and WorkerConsistencyCallback has registered its own. Register yours "
        "first: add the callback of yours that does so before the monitor, which then reads the gradients elsewhere."
    )


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

    Noise comes from the first micro-batch where there are several, and else from the norms of single examples. With
    several the squared norms are the sketch's: backward passes are seen one by one, and of their sum only the sketch
    is kept. The first micro-batch's is then taken from the sketch as well, so that both are off by the same.

    Args:
        model: as callbacks get it.
        probes: size of the sketch.
        pairs: whether batches are [chosen; rejected].
        compiled: whether torch.compile is at work on it.
    """

    name = "hooks on the parameters"

    def __init__(self, model: nn.Module, probes: int, pairs: bool, compiled: bool = False):
        self._model = unwrap(model)
        self._sketch = GradientSketch(probes)
        self._examples = SingleExamples(model, pairs, compiled)
        self._stack = ExitStack()

    def begin(self, args: Any) -> None:
        """Watch one optimizer step."""
        self.close()  # a step that never came to its end
        self._rows: list[int] = []
        self._seen: list[str] = []
        self._squares: list[Tensor] = []  # of the parameters
        self._sketches: list[Tensor] = []  # of the micro-batches
        self._now: Tensor | None = None  # of the micro-batch that is under way
        self._small = float("nan")
        if args.gradient_accumulation_steps == 1:
            self._examples.begin()
        self._stack.enter_context(own_gradients(self._model, self._see))

    def micro_batch(self, rows: int, last: bool) -> None:
        """Take in a micro-batch whose backward pass is done, of `rows` examples."""
        if last:
            self._check()
        if self._now is not None:
            self._sketches.append(self._now)
        self._rows.append(rows)
        self._now = None
        if last and len(self._rows) == 1:
            self._small = self._examples.mean_square()

    def end(self) -> WorkerGradient:
        """Return what was seen, once the step is done."""
        self.close()
        total, rows = torch.stack(self._sketches).sum(0), sum(self._rows)
        exact = len(self._rows) == 1 and len(self._seen) == len(set(self._seen))
        several = len(self._rows) > 1
        of_small = float(self._rows[0]) if several else 1.0
        small = float(self._sketches[0].square().sum()) if several else self._small
        return WorkerGradient(
            square=float(torch.stack(self._squares).sum() if exact else total.square().sum()),
            sketch=total,
            small=_of_step(small, of_small, rows),
            of_small=of_small,
            examples=rows,
            mean_square=float("nan"),
        )

    def close(self) -> None:
        """Stop watching."""
        self._stack.close()
        self._examples.close()

    def _check(self) -> None:
        """Raise if a parameter got a gradient that was not seen."""
        sharded = {
            name: parameter
            for name, parameter in self._model.named_parameters()
            if parameter.requires_grad and isinstance(parameter, DTensor)  # where hooks must find another parameter
        }
        unseen = sorted(name for name in sharded.keys() - set(self._seen) if sharded[name].grad is not None)
        if unseen or not self._seen:
            raise GradientRecordError(
                f"The gradient of {listing(unseen) if unseen else 'every parameter'} did not show in the backward "
                "pass, so WorkerConsistencyCallback cannot compare the workers. Train without torch.compile "
                "(torch_compile=False) and without tensor parallelism, or leave it out."
            )

    def _see(self, name: str, gradient: Tensor) -> None:
        self._seen.append(name)
        self._squares.append(_square([gradient]))
        part = self._sketch(name, gradient)
        self._now = part if self._now is None else self._now + part


def _of_step(small: float, of_small: float, rows: int) -> float:
    """Return a squared norm of `of_small` examples' part of a mean over `rows`, as if it were a mean of its own."""
    return small * (rows / of_small) ** 2 if of_small else float("nan")


def _square(tensors: list[Tensor]) -> Tensor:
    """Return the squared norm of all entries, in float32. ()"""
    return torch.stack([torch.linalg.vector_norm(x, dtype=torch.float32) for x in tensors]).square().sum()
