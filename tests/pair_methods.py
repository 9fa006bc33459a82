"""Methods for pairs that live outside the package, known to the trainer by their import path."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from hf_gradkit.objectives import Objective, PreferenceRecord, dpo_losses
from hf_gradkit.weighting import PairRecord


@dataclass(frozen=True)
class Scaled(Objective):
    """DPO times a factor."""

    factor: float = 1.0

    def preference(self, record: PreferenceRecord) -> torch.Tensor:
        return self.factor * dpo_losses(record)


@dataclass(frozen=True)
class OneNumber(Objective):
    """Not an objective: one number for all pairs."""

    def preference(self, record: PreferenceRecord) -> torch.Tensor:
        return dpo_losses(record).mean()


@dataclass(frozen=True)
class AgreeingOnly:
    """1 where the reward model agrees with the label, 0 elsewhere."""

    record_type: ClassVar[type] = PairRecord

    def __call__(self, record: PairRecord) -> torch.Tensor:
        return (record.margins > 0).to(record.margins)
