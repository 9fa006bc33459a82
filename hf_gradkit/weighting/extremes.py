"""Extremes: the easiest and the hardest examples are favoured."""

from dataclasses import dataclass

from torch import Tensor

from .base import LossWeighting


@dataclass(frozen=True)
class Extremes(LossWeighting):
    """Both the easiest and the hardest examples count more: f(h) = |h| (arXiv 2502.06733).

    The contrary of [`Quadratic`]. See [`LossWeighting`] for the options.
    """

    def favour(self, h: Tensor) -> Tensor:
        return h.abs()
