"""Uniform: every example counts the same. The baseline that the other methods are compared with."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import LossRecord, check_losses


@dataclass(frozen=True)
class Uniform:
    """u_i = 1 for every example."""

    record_type: ClassVar[type] = LossRecord

    def __call__(self, record: LossRecord) -> Tensor:
        """Return ones, (n,); the losses are checked like those of any other method."""
        return torch.ones_like(check_losses(record.losses))
