"""DPOConfig's `gradient_balancing`: what multiplies the gradient of each row at its log-probability."""

from abc import abstractmethod
from collections.abc import Callable
from math import exp, log
from typing import Any

import torch
from accelerate.utils import reduce
from torch import Tensor

from .._backends import REPLICATED, SHARDED, backend, check_backend
from ..callbacks.gradient_monitor import GradientMonitor
from ..gradients.balancing import LogRatio, alphas

MODES = ("none", "pair", "batch")


class Balancing(GradientMonitor):
    """Balances the two answers' pulls; the value of the loss stays as it is.

    Figures: `balancing/alpha` and `balancing/norm_ratio`, the geometric means of alpha and of the ratio of the
    rejected to the chosen answers' gradients as they would be without balancing.
    """

    state: LogRatio | None = None  # what a resumed run needs

    def __init__(self, monitor_steps: int, trainer: Any):
        super().__init__("gradient_balancing", monitor_steps, trainer)
        self._sums: list[Tensor] = []

    @abstractmethod
    def factors(self, pairs: int, backward: Callable[[], None]) -> Tensor:
        """Return what multiplies the gradient of each row: chosen ones, then rejected. (2 pairs,)

        Args:
            pairs: number of them in the micro-batch.
            backward: runs the backward pass of the loss as it is, and leaves the parameters' `.grad` alone.
        """

    def _needs(self, args: Any) -> dict[str, Any]:
        return {"mode": "norms"}

    def _watch(self, model: Any) -> None:
        self._sums = []  # of a step that was interrupted

    def _note(self, chosen: Tensor, rejected: Tensor) -> None:
        """Add the norms of a micro-batch to the step's sums. (n,) each"""
        there = (chosen > 0) & (rejected > 0)
        logs = (rejected[there].double() / chosen[there]).log()
        self._sums.append(torch.stack([logs.sum(), there.sum().to(logs)]))

    def _mean_log_ratio(self) -> float | None:
        """Return the mean over the step's pairs of all ranks; None if none has two gradients."""
        total, count = reduce(torch.stack(self._sums).sum(0), "sum").tolist()
        self._sums = []
        return total / count if count else None

    def _log(self, step: int, log_ratio: float) -> None:
        self.figures.add(step, {"balancing/alpha": exp(log_ratio / 2), "balancing/norm_ratio": exp(log_ratio)}, {})


class PairBalancing(Balancing):
    """Each pair by its own gradients, exactly, from one more backward pass."""

    def __init__(self, trainer: Any):
        what = "The gradients of gradient_balancing='pair'"
        check_backend(backend(), what, "use gradient_balancing='batch'", tested=REPLICATED)
        super().__init__(1, trainer)

    def factors(self, pairs: int, backward: Callable[[], None]) -> Tensor:
        backward()
        chosen, rejected = self._recorder.norms().split(pairs)
        self._note(chosen, rejected)
        if self._recorder.is_shared:
            self._recorder.again()  # others watch the backward that trains
        else:
            self._recorder.stop()
        alpha = alphas(chosen, rejected)
        return torch.cat([alpha, 1 / alpha])

    def _take(self, args: Any) -> None:
        pass  # all was taken before the backward that trains

    def _report(self, args: Any, step: int, model: Any) -> None:
        log_ratio = self._mean_log_ratio()
        if log_ratio is not None:
            self._log(step, log_ratio)


class BatchBalancing(Balancing):
    """All pairs by a moving average of their ratios, from the steps that are recorded: every `monitor_steps`-th."""

    def __init__(self, monitor_steps: int, trainer: Any):
        check_backend(backend(), "The averages of gradient_balancing", "leave it out", tested=SHARDED)
        super().__init__(monitor_steps, trainer)
        self.state = LogRatio()

    def factors(self, pairs: int, backward: Callable[[], None]) -> Tensor:
        alpha = torch.full((pairs,), self.state.alpha)
        return torch.cat([alpha, 1 / alpha])

    def _take(self, args: Any) -> None:
        self._note(*self._recorder.norms().chunk(2))

    def _report(self, args: Any, step: int, model: Any) -> None:
        log_ratio = self._mean_log_ratio()
        if log_ratio is not None:
            self.state.update(log_ratio)
        self._log(step, 2 * log(self.state.alpha))


def build_balancing(args: Any, trainer: Any) -> Balancing | None:
    """Return what balances a trainer's gradients, or None."""
    mode = getattr(args, "gradient_balancing", "none")
    if mode == "none":
        return None
    if mode == "pair":
        balancing = PairBalancing(trainer)
    else:
        balancing = BatchBalancing(args.monitor_steps, trainer)
    trainer.add_callback(balancing)
    return balancing


def check_balancing(args: Any) -> None:
    """Raise `ValueError` for a `gradient_balancing` that there is not, or that does not go with other options."""
    mode = getattr(args, "gradient_balancing", "none")
    if mode not in MODES:
        raise ValueError(f"`gradient_balancing` must be 'none', 'pair' or 'batch', but it is {mode!r}.")
    if mode == "none":
        return
    if args.ld_alpha is not None:
        raise ValueError(
            f"`ld_alpha` is {args.ld_alpha} together with gradient_balancing={mode!r}, which is not tested. Unset one."
        )
    if args.fp16:
        raise ValueError(f"`fp16` scales the loss, and gradient_balancing={mode!r} reads gradients. Use bf16.")
    names = ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs")
    reentrant = [name for name in names if (getattr(args, name, None) or {}).get("use_reentrant")]
    if mode == "pair" and args.gradient_checkpointing and reentrant:
        raise ValueError(
            "gradient_balancing='pair' runs a backward pass of its own, which reentrant checkpointing does not allow. "
            f"Set 'use_reentrant' to False in `{reentrant[0]}`, or use gradient_balancing='batch'."
        )
