"""FLoRA and the log reference: how much better than before fine-tuning the model predicts a text."""

from dataclasses import dataclass
from typing import ClassVar

from .base import TokenAttack, TokenRecord

SMALLEST_LOSS = 0.05  # nats a token; below, the reference knows the text, and a ratio says little


@dataclass(frozen=True)
class FLoRA(TokenAttack):
    """-L / L_ref, the fine-tuned loss ratio (arXiv 2402.17012)."""

    needs_reference: ClassVar[bool] = True

    def score(self, record: TokenRecord) -> float:
        return -record.target.loss / max(record.base.loss, 1e-12)

    def doubtful(self, record: TokenRecord) -> bool:
        """Return whether L_ref is so small that the ratio says little."""
        return record.base.loss < SMALLEST_LOSS


@dataclass(frozen=True)
class LogReference(TokenAttack):
    """L_ref - L (arXiv 2012.07805, with the base model as reference)."""

    needs_reference: ClassVar[bool] = True

    def score(self, record: TokenRecord) -> float:
        return record.base.loss - record.target.loss
