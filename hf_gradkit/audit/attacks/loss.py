"""Loss: fine-tuned models have seen their members, and predict them better than others."""

from dataclasses import dataclass

from .base import TokenAttack, TokenRecord


@dataclass(frozen=True)
class Loss(TokenAttack):
    """-L (Yeom et al., arXiv 1709.01604)."""

    def score(self, record: TokenRecord) -> float:
        return -record.target.loss
