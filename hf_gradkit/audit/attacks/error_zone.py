"""Error zone: where the model is still wrong about a member, it is less wrong than before fine-tuning."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .base import TokenAttack, TokenRecord, check_numbers


@dataclass(frozen=True)
class ErrorZone(TokenAttack):
    """(sum of positive d_t + e) / (sum of |negative d_t| + e), d_t = log p_t - log q_t (arXiv 2601.12104).

    Both sums are over the tokens that are not the target's first choice. Without any, the score is 1.

    Args:
        epsilon: e, nats. The value is ours; it must stay above the rounding of the log-probabilities.
    """

    needs_reference: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("top1",)
    epsilon: float = 1e-3

    def __post_init__(self):
        check_numbers(self, 0)

    def score(self, record: TokenRecord) -> float:
        gains = record.gains[~record.target.top1]
        up, down = np.maximum(gains, 0).sum(), np.maximum(-gains, 0).sum()
        return float((up + self.epsilon) / (down + self.epsilon))
