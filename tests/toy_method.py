"""A weighting method that lives outside the package: the k hardest examples count double, the rest share what is left.

tests/test_custom_method.py trains it from a YAML by its import path.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from hf_gradkit.weighting import LossRecord

CALLS: list[int] = []


@dataclass(frozen=True)
class HardestTwice:
    """u = 2 for the `k` largest losses, and equal weights for the others so that the mean is 1."""

    k: int = 1

    record_type: ClassVar[type] = LossRecord

    def __call__(self, record: LossRecord) -> torch.Tensor:
        n, k = len(record.losses), min(self.k, len(record.losses) // 2)
        CALLS.append(n)
        u = torch.full_like(record.losses, (n - 2 * k) / (n - k))
        u[record.losses.topk(k).indices] = 2.0
        return u
