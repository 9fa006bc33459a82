"""Min-K% and Min-K%++: a text that was trained on has no tokens that surprise the model."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .base import TokenAttack, TokenRecord, check_numbers

SMALLEST_STD = 1e-6  # of log p over the vocabulary, where the model is as good as certain


@dataclass(frozen=True)
class LowestTokens(TokenAttack):
    """The mean of the lowest k % of the tokens' figures, of at least one token.

    Args:
        k: per cent, above 0 and at most 100.
    """

    k: float = 20

    def __post_init__(self):
        check_numbers(self, 0, 100)

    @abstractmethod
    def token_figures(self, record: TokenRecord) -> np.ndarray:
        """Return a figure of each token. (t,)"""

    def score(self, record: TokenRecord) -> float:
        figures = np.sort(self.token_figures(record))
        # A hair more, so that 20 % of 15 tokens are 3 and not 2.9999.
        return float(figures[: max(1, int(len(figures) * self.k / 100 + 1e-9))].mean())


@dataclass(frozen=True)
class MinK(LowestTokens):
    """Mean of the lowest k % of log p_t (arXiv 2310.16789)."""

    def token_figures(self, record: TokenRecord) -> np.ndarray:
        return record.target.log_probs


@dataclass(frozen=True)
class MinKPlusPlus(LowestTokens):
    """Mean of the lowest k % of (log p_t - mu_t) / sigma_t (arXiv 2404.02936).

    mu_t and sigma_t^2 are mean and variance of log p over the vocabulary, weighted by p itself.
    """

    needs: ClassVar[tuple[str, ...]] = ("mean", "std")

    def token_figures(self, record: TokenRecord) -> np.ndarray:
        target = record.target
        return (target.log_probs - target.mean) / np.maximum(target.std, SMALLEST_STD)
