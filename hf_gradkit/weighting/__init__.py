"""Weighting methods: losses or reward margins in, one multiplier an example out.

One method, one file; no trainer needed.
"""

from torch import Tensor

from .base import LossRecord, LossWeighting, PairRecord
from .build import build_weighting
from .calibration import Calibration, fit_temperature, margin_nll
from .extremes import Extremes
from .linupper import LinUpper
from .madpo import MADPO, madpo_weights
from .quadratic import Quadratic
from .registry import METHODS, build_method, find_method
from .scope import Comparison, RunningWindow
from .uniform import Uniform

__all__ = [
    "MADPO",
    "METHODS",
    "Calibration",
    "Comparison",
    "Extremes",
    "LinUpper",
    "LossRecord",
    "LossWeighting",
    "PairRecord",
    "Quadratic",
    "RunningWindow",
    "Uniform",
    "build_method",
    "build_weighting",
    "find_method",
    "fit_temperature",
    "loss_weights",
    "madpo_weights",
    "margin_nll",
]


def loss_weights(
    losses: Tensor,
    strategy: str,
    temperature: float = 1.0,
    low_quantile: float = 0.0,
    high_quantile: float = 1.0,
    max_weight: float | None = None,
) -> Tensor:
    """Return the multipliers of examples that are compared with each other (arXiv 2502.06733).

    >>> import torch
    >>> loss_weights(torch.tensor([0.0, 1.0, 2.0]), "linupper")
    tensor([0.4661, 1.2670, 1.2670])

    Args:
        losses: mean token cross-entropy of each example, in nats. (n,)
        strategy: `"linupper"`, `"quadratic"`, `"extremes"`, or `"none"` for ones.
        temperature, low_quantile, high_quantile, max_weight: see [`LossWeighting`].

    Returns:
        Detached multipliers with mean 1. (n,)

    Raises:
        ValueError: for an unknown strategy, an option out of its domain, or losses that are not finite.
    """
    options = {
        "temperature": temperature,
        "low_quantile": low_quantile,
        "high_quantile": high_quantile,
        "max_weight": max_weight,
    }
    if find_method(strategy).record_type is not LossRecord:
        raise ValueError(f"{strategy!r} weighs preference pairs by their margin, not losses. Use `madpo_weights`.")
    LinUpper(**options)  # the options are checked for every strategy, "none" included
    return build_method(strategy, {} if strategy == "none" else options)(LossRecord(losses))
