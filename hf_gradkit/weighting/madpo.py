"""MADPO: pairs are amplified or dampened by how far a reward model says the chosen answer is ahead.

Letters: `h` signed reward margin r(x, chosen) - r(x, rejected), in logits (n,); `s` the sigmoid.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import check_numbers


@dataclass(frozen=True)
class PairRecord:
    """What is known of preference pairs.

    Attributes:
        margins: reward of the chosen minus reward of the rejected answer, as a Bradley-Terry logit. (n,)
    """

    margins: Tensor


@dataclass(frozen=True)
class MADPO:
    """Margin-adaptive DPO (arXiv 2510.05342).

        c(a)      = c_min + (c_max - c_min) / (1 + (c_max - 1)/(1 - c_min) * exp(steepness * (a - tau))),  c(tau) = 1
        weight(h) = s(c(|h|) h) / s(h)    where h > -tau, and 1 elsewhere

    computed in log space. The weighted loss `mean(weight * -log s(beta m))` has its minimum at beta m = c(|h|) h while
    |h| < tau: small margins are amplified, large ones dampened. Pairs on which the reward model disagrees with the
    label (-tau < h < 0) get almost no weight. Where most margins lie beyond tau, as with an uncalibrated public reward
    model, every weight is near 1 and MADPO is DPO.

    Args:
        c_max: largest amplification, above 1. The paper's best is 4.
        c_min: smallest, in [0, 1); None for 1 / c_max, as in the paper's experiments.
        steepness: the paper's lambda, above 0.
        tau: the margin at which nothing changes, above 0; 6.907 is a preference probability of .999.

    Raises:
        ValueError: naming the field and the value that is out of its domain.
    """

    c_max: float = 4.0
    c_min: float | None = None
    steepness: float = 1.0
    tau: float = 6.907

    record_type: ClassVar[type] = PairRecord

    def __post_init__(self):
        check_numbers(self, optional=("c_min",))
        if not 1 < self.c_max < float("inf"):
            raise ValueError(f"`c_max` must be above 1, but it is {self.c_max}: it amplifies small margins.")
        if self.c_min is not None and not 0 <= self.c_min < 1:
            raise ValueError(
                f"`c_min` must be in [0, 1), but it is {self.c_min}: it dampens large margins. None is 1 / c_max."
            )
        for name in ("steepness", "tau"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"`{name}` must be above 0, but it is {getattr(self, name)}.")

    def coefficient(self, size: Tensor) -> Tensor:
        """Return c(a) for margin sizes a = |h|, between c_min and c_max. (n,) -> (n,)"""
        c_min = 1 / self.c_max if self.c_min is None else self.c_min
        # ln of (c_max - 1)/(1 - c_min) * exp(steepness * (a - tau)), kept in the exponent so that it cannot overflow
        shift = torch.log(torch.tensor((self.c_max - 1) / (1 - c_min), dtype=size.dtype, device=size.device))
        return c_min + (self.c_max - c_min) * torch.sigmoid(-(shift + self.steepness * (size - self.tau)))

    def __call__(self, record: PairRecord) -> Tensor:
        """Return the weight of each pair: (n,), detached, between 0 and 2.

        Raises:
            ValueError: if the margins are not one-dimensional or not finite (the first positions are named).
        """
        h = record.margins.detach()
        if h.dim() != 1:
            raise ValueError(f"Margins must have shape (n,), but they have shape {tuple(h.shape)}.")
        h = h if h.dtype == torch.float64 else h.float()
        bad = (~torch.isfinite(h)).nonzero().flatten()
        if len(bad):
            raise ValueError(f"Margins must be finite, but those at positions {bad[:10].tolist()} are not.")
        weight = torch.exp(F.logsigmoid(self.coefficient(h.abs()) * h) - F.logsigmoid(h))
        return torch.where(h > -self.tau, weight, torch.ones_like(weight))


def madpo_weights(
    margins: Tensor, c_max: float = 4.0, c_min: float | None = None, steepness: float = 1.0, tau: float = 6.907
) -> Tensor:
    """Return MADPO's weight of each pair (arXiv 2510.05342); see [`MADPO`].

    Args:
        margins: reward of the chosen minus reward of the rejected answer, calibrated Bradley-Terry logits. (n,)
        c_max, c_min, steepness, tau: see [`MADPO`].

    Returns:
        Detached weights between 0 and 2. (n,)
    """
    return MADPO(c_max, c_min, steepness, tau)(PairRecord(margins))
