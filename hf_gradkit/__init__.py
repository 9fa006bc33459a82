"""hf_gradkit: see and steer what your data does to the model.

Drop-in trainers for transformers and TRL. Heavy imports wait until a name is used.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .callbacks.entanglement import EntanglementCallback
    from .callbacks.gradient_statistics import GradientStatisticsCallback
    from .callbacks.privacy_audit import PrivacyAuditCallback
    from .callbacks.worker_consistency import WorkerConsistencyCallback
    from .trainers.config import DPOConfig, RewardConfig, SFTConfig, TrainingArguments
    from .trainers.dpo_trainer import DPOTrainer
    from .trainers.reward_trainer import RewardTrainer
    from .trainers.sft_trainer import SFTTrainer
    from .trainers.trainer import Trainer

_HOMES = {
    "EntanglementCallback": ".callbacks.entanglement",
    "GradientStatisticsCallback": ".callbacks.gradient_statistics",
    "PrivacyAuditCallback": ".callbacks.privacy_audit",
    "WorkerConsistencyCallback": ".callbacks.worker_consistency",
    "DPOConfig": ".trainers.config",
    "RewardConfig": ".trainers.config",
    "SFTConfig": ".trainers.config",
    "TrainingArguments": ".trainers.config",
    "DPOTrainer": ".trainers.dpo_trainer",
    "RewardTrainer": ".trainers.reward_trainer",
    "SFTTrainer": ".trainers.sft_trainer",
    "Trainer": ".trainers.trainer",
}

__all__ = [
    "DPOConfig",
    "DPOTrainer",
    "EntanglementCallback",
    "GradientStatisticsCallback",
    "PrivacyAuditCallback",
    "RewardConfig",
    "RewardTrainer",
    "SFTConfig",
    "SFTTrainer",
    "Trainer",
    "TrainingArguments",
    "WorkerConsistencyCallback",
]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
