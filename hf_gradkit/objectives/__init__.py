"""Preference objectives: pairs in, one loss value each out. One method, one file; no trainer needed."""

from .base import Adaptation, Objective, PreferenceRecord, dpo_losses
from .beta_dpo import BetaDPO
from .logps import preference_record
from .registry import OBJECTIVES, build_objective
from .rpo import RPO

__all__ = [
    "OBJECTIVES",
    "RPO",
    "Adaptation",
    "BetaDPO",
    "Objective",
    "PreferenceRecord",
    "build_objective",
    "dpo_losses",
    "preference_record",
]
