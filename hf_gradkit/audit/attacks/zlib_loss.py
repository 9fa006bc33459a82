"""Loss over zlib: a text that compresses well is predicted well by any model."""

from dataclasses import dataclass

from .base import TokenAttack, TokenRecord


@dataclass(frozen=True)
class ZlibLoss(TokenAttack):
    """-L / bytes(zlib(text)) (Carlini et al., arXiv 2012.07805), L being the mean over tokens."""

    def score(self, record: TokenRecord) -> float:
        return -record.target.loss / record.zlib_bytes
