"""LinUpper: low-loss examples are pushed down, everything above mid-range counts the same."""

from dataclasses import dataclass

from torch import Tensor

from .base import LossWeighting


@dataclass(frozen=True)
class LinUpper(LossWeighting):
    """Low losses count less, everything above mid-range the same: f(h) = min(h + 1, 1), the best of arXiv 2502.06733.

    Takes weight from examples the model already predicts well and, unlike a weight that keeps growing with the loss,
    gives no extra weight to the hardest ones, among which the noise is. See [`LossWeighting`] for the options.
    """

    def favour(self, h: Tensor) -> Tensor:
        return (h + 1).clamp(max=1)
