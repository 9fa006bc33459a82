"""MADPO: pairs are amplified or dampened by how far a reward model says the chosen answer is ahead.

Not to be trained on raw margins of a public reward model: see [`~hf_gradkit.weighting.fit_temperature`].

Letters: `h` signed reward margin r(x, chosen) - r(x, rejected), in logits (n,); `s` the sigmoid.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import PairRecord, check_finite, check_numbers


@dataclass(frozen=True)
class MADPO:
    """Margin-adaptive DPO (arXiv 2510.05342).

        c(a)      = c_min + (c_max - c_min) / (1 + (c_max - 1)/(1 - c_min) * exp(steepness * (a - tau))),  c(tau) = 1
        weight(h) = s(c(|h|) h) / s(h)    where h > -tau, and 1 elsewhere

    computed in log space. The weighted loss `mean(weight * -log s(beta m))` has its minimum at beta m = c(|h|) h while
    |h| < tau: small margins are amplified, large ones dampened. Pairs on which the reward model disagrees with the
    label (-tau < h < 0) get less weight, a little below 0 almost none. Where most margins lie beyond tau, as with an
    uncalibrated public reward model, every weight is near 1 and MADPO is DPO.

    Args:
        c_max: largest amplification, above 1. The paper's best is 4.
        c_min: smallest, in [0, 1); None for 1 / c_max, as in the paper's experiments.
        steepness: the paper's lambda, above 0.
        tau: the margin at which nothing changes, above 0; 6.907 is a preference probability of .999.
        tau_probability: tau as that probability instead, in (0.5, 1): tau = ln(p / (1 - p)). None leaves `tau`.

    Raises:
        ValueError: naming the field and the value that is out of its domain.
    """

    c_max: float = 4.0
    c_min: float | None = None
    steepness: float = 1.0
    tau: float = 6.907
    tau_probability: float | None = None

    record_type: ClassVar[type] = PairRecord

    def __post_init__(self):
        check_numbers(self, optional=("c_min", "tau_probability"))
        if not 1 < self.c_max < float("inf"):
            raise ValueError(f"`c_max` must be above 1, but it is {self.c_max}: it amplifies small margins.")
        if self.c_min is not None and not 0 <= self.c_min < 1:
            raise ValueError(
                f"`c_min` must be in [0, 1), but it is {self.c_min}: it dampens large margins. None is 1 / c_max."
            )
        for name in ("steepness", "tau"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"`{name}` must be above 0, but it is {getattr(self, name)}.")
        if self.tau_probability is not None:
            if not 0.5 < self.tau_probability < 1:
                raise ValueError(
                    f"`tau_probability` must be in (0.5, 1), but it is {self.tau_probability}. It is the probability "
                    "of preferring the chosen answer at which nothing changes, such as 0.999."
                )
            if self.tau != type(self).tau:
                raise ValueError(
                    f"Both `tau` ({self.tau}) and `tau_probability` ({self.tau_probability}) are set. Keep one."
                )

    @property
    def threshold(self) -> float:
        """The margin at which nothing changes, from `tau` or `tau_probability`."""
        p = self.tau_probability
        return self.tau if p is None else math.log(p / (1 - p))

    def coefficient(self, size: Tensor) -> Tensor:
        """Return c(a) for margin sizes a = |h|, between c_min and c_max. (n,) -> (n,)"""
        c_min = 1 / self.c_max if self.c_min is None else self.c_min
        # ln of (c_max - 1)/(1 - c_min) * exp(steepness * (a - tau)), kept in the exponent so that it cannot overflow
        shift = torch.log(torch.tensor((self.c_max - 1) / (1 - c_min), dtype=size.dtype, device=size.device))
        return c_min + (self.c_max - c_min) * torch.sigmoid(-(shift + self.steepness * (size - self.threshold)))

    def __call__(self, record: PairRecord) -> Tensor:
        """Return the weight of each pair: (n,), detached, between 0 and 2.

        Raises:
            ValueError: if the margins are not one-dimensional or not finite (the first positions are named).
        """
        h = check_finite(record.margins, "Margins")
        weight = torch.exp(F.logsigmoid(self.coefficient(h.abs()) * h) - F.logsigmoid(h))
        return torch.where(h > -self.threshold, weight, torch.ones_like(weight))


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
