"""Quadratic: examples of middling loss are favoured."""

from dataclasses import dataclass

from torch import Tensor

from .base import LossWeighting


@dataclass(frozen=True)
class Quadratic(LossWeighting):
    """Both the easiest and the hardest examples count less: f(h) = 1 - h^2 (arXiv 2502.06733).

    See [`LossWeighting`] for the options.
    """

    def favour(self, h: Tensor) -> Tensor:
        return 1 - h.square()
