"""Window: how many short stretches of a text the model predicts better than before fine-tuning."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from .base import TokenAttack, TokenRecord

WIDTHS = (2, 3, 4, 6, 9, 13, 18, 25, 32, 40)  # the paper's


@dataclass(frozen=True)
class Window(TokenAttack):
    """Share of sliding windows in which the reference's loss exceeds the target's (arXiv 2601.02751).

    The mean over widths w of the share among the t - w + 1 windows. Widths above t are left out; a text that is
    shorter than the smallest width is one window.

    Args:
        widths: tokens in a window, whole numbers of at least 1.
    """

    needs_reference: ClassVar[bool] = True
    widths: list[int] = field(default_factory=lambda: list(WIDTHS))

    def __post_init__(self):
        wrong = [w for w in self.widths if isinstance(w, bool) or not isinstance(w, int) or w < 1]
        if wrong or not self.widths:
            raise ValueError(f"`widths` of Window must be whole numbers of at least 1, but they are {self.widths!r}.")

    def score(self, record: TokenRecord) -> float:
        sums = np.concatenate([[0.0], np.cumsum(record.gains)])  # (t + 1,)
        tokens = len(sums) - 1
        widths = [w for w in self.widths if w <= tokens] or [tokens]
        return float(np.mean([np.mean(sums[w:] > sums[:-w]) for w in widths]))
