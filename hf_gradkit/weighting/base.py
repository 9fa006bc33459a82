"""What every loss-based weighting method shares: scaling, softmax and the cap.

Letters: `l` losses (n,), `h` scaled losses in [-1, 1] (n,), `r` temperature, `u` multipliers (n,) with mean 1.
The maths is that of "Dynamic Loss-Based Sample Reweighting for Improved LLM Pretraining" (arXiv 2502.06733); quantile
scaling and the cap are ours.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

# Losses closer together than this are treated as equal, so that rounding is not stretched into weights.
SMALLEST_SPREAD = 1e-6


@dataclass(frozen=True)
class LossRecord:
    """The losses of the examples that are compared with each other.

    Attributes:
        losses: mean token cross-entropy of each example, in nats. (n,)
    """

    losses: Tensor


@dataclass(frozen=True)
class PairRecord:
    """What is known of preference pairs.

    Attributes:
        margins: reward of the chosen minus reward of the rejected answer, as a Bradley-Terry logit. (n,)
    """

    margins: Tensor


@dataclass(frozen=True)
class LossWeighting(ABC):
    """A method that turns compared losses into multipliers with mean 1.

        l_min, l_max = quantiles of the losses at low_quantile and high_quantile (0 and 1: minimum and maximum)
        h_i = (2 l_i - l_max - l_min) / max(l_max - l_min, 1e-6), clipped to [-1, 1]
        u   = n * softmax(f(h) / temperature), no u_i above max_weight (the excess goes to the others)

    A subclass only states `f` in [`favour`].

    Args:
        temperature: `r` > 0. The largest weight is at most e^(range of f / r) times the smallest: 100 is nearly
            uniform, 1.0 is mild (2.7x), 0.4 is strong (12x).
        low_quantile: losses at or below this quantile get h = -1. With 0.0 the scale starts at the minimum.
        high_quantile: losses at or above this quantile get h = 1. With 1.0 one outlier sets the scale; 0.95 takes
            that power away (our addition to the paper).
        max_weight: largest multiplier, above 1, or None for no cap (our addition to the paper).

    Raises:
        ValueError: naming the field and the value that is out of its domain.
    """

    temperature: float = 1.0
    low_quantile: float = 0.0
    high_quantile: float = 1.0
    max_weight: float | None = None

    record_type: ClassVar[type] = LossRecord

    def __post_init__(self):
        check_numbers(self, optional=("max_weight",))
        if not 0 < self.temperature < float("inf"):
            raise ValueError(
                f"`temperature` must be above 0, but it is {self.temperature}. Use a large value such as 100 for "
                "nearly uniform weights, or `weighting='none'` to switch weighting off."
            )
        if not 0 <= self.low_quantile < self.high_quantile <= 1:
            raise ValueError(
                "The quantiles must satisfy 0 <= `low_quantile` < `high_quantile` <= 1, but they are "
                f"{self.low_quantile} and {self.high_quantile}."
            )
        if self.max_weight is not None and not self.max_weight > 1:
            raise ValueError(
                f"`max_weight` must be above 1, but it is {self.max_weight}: the multipliers have mean 1, so a cap of "
                "1 or less cannot hold. Set it to None for no cap."
            )

    @abstractmethod
    def favour(self, h: Tensor) -> Tensor:
        """Return how much an example with scaled loss `h` in [-1, 1] is favoured. (n,) -> (n,)"""

    def __call__(self, record: LossRecord) -> Tensor:
        """Return the multipliers of the compared examples: (n,), detached, mean 1.

        Raises:
            ValueError: if the losses are not one-dimensional, empty, or not finite (the first positions are named).
        """
        losses = check_losses(record.losses)
        h = scale(losses, self.low_quantile, self.high_quantile)
        u = len(losses) * torch.softmax(self.favour(h) / self.temperature, dim=0)
        return u if self.max_weight is None else cap(u, self.max_weight)


def check_numbers(options: Any, optional: tuple[str, ...] = ()) -> None:
    """Raise `ValueError` for a field of a method that is no number, or None where it is not optional."""
    for field in fields(options):
        value = getattr(options, field.name)
        if value is None and field.name in optional:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"`{field.name}` must be a number, but it is {value!r}.")


def check_losses(losses: Tensor) -> Tensor:
    """Return the losses detached and in at least float32, or say what is wrong with them."""
    if losses.dim() != 1 or len(losses) == 0:
        raise ValueError(f"Losses must have shape (n,) with n >= 1, but they have shape {tuple(losses.shape)}.")
    return check_finite(losses, "Losses")


def check_finite(values: Tensor, name: str) -> Tensor:
    """Return finite values, (n,), detached and in at least float32, or say what is wrong with them."""
    if values.dim() != 1:
        raise ValueError(f"{name} must have shape (n,), but they have shape {tuple(values.shape)}.")
    values = values.detach()
    if values.dtype != torch.float64:
        values = values.float()
    bad = (~torch.isfinite(values)).nonzero().flatten()
    if len(bad):
        raise ValueError(f"{name} must be finite, but those at positions {bad[:10].tolist()} are not.")
    return values


def multipliers_of(method: Any, values: Tensor) -> Tensor:
    """Return what a method gives compared losses, or the margins of pairs, or say what is wrong with it.

    Args:
        method: maps its `record_type` to multipliers.
        values: the record's losses or margins. (n,)

    Returns:
        Multipliers, detached. (n,)

    Raises:
        ValueError: if a method gives another shape, a negative number, or one that is not finite.
    """
    u = method(method.record_type(values))
    if not isinstance(u, Tensor) or u.shape != values.shape:
        shape = tuple(u.shape) if isinstance(u, Tensor) else type(u).__name__
        problem = f"returned {shape} for {len(values)} examples, where one multiplier each is needed"
    elif not torch.isfinite(u).all():
        problem = "returned multipliers that are not finite"
    elif (u < 0).any():
        problem = f"returned negative multipliers (the smallest is {u.min().item():.4g}), which would unlearn examples"
    else:
        return u.detach().to(values)
    raise ValueError(f"The weighting method {method!r} {problem}.")


def scale(losses: Tensor, low_quantile: float = 0.0, high_quantile: float = 1.0) -> Tensor:
    """Map losses (n,) to h in [-1, 1] (n,): -1 at the low quantile, 1 at the high one, clipped beyond."""
    if low_quantile == 0.0 and high_quantile == 1.0:
        low, high = losses.min(), losses.max()
    else:
        low, high = torch.quantile(losses, losses.new_tensor([low_quantile, high_quantile]))
    spread = (high - low).clamp(min=SMALLEST_SPREAD)
    return ((2 * losses - high - low) / spread).clamp(-1, 1)


def cap(u: Tensor, largest: float) -> Tensor:
    """Limit multipliers to `largest` and hand the excess to the others in proportion, so that the mean is kept.

    Water-filling: the result is min(largest, s * u) with the one s for which the mean is unchanged.

    >>> cap(torch.tensor([0.5, 0.5, 3.0]), 2.0)
    tensor([1., 1., 2.])

    Args:
        u: multipliers with mean 1, none negative. (n,)
        largest: the cap, above 1.
    """
    if u.max() <= largest:
        return u
    u = u.clamp(min=1e-12)  # what has underflowed to zero takes its share of the excess too
    n = len(u)
    descending = u.sort(descending=True).values
    capped = torch.arange(n, device=u.device)  # candidate numbers of capped examples
    rest = descending.flip(0).cumsum(0).flip(0)  # rest[k] = sum of all but the k largest
    # With k examples at the cap the others share n - k * largest; beyond feasible k that is negative.
    stretch = (n - capped * largest) / rest.clamp(min=torch.finfo(u.dtype).tiny)
    # The right k is the first for which the largest uncapped one stays at or below the cap.
    k = int((stretch * descending <= largest * (1 + 1e-9)).nonzero()[0])
    return (stretch[k] * u).clamp(max=largest)
