"""hf_gradkit: see and steer what your data does to the model.

Drop-in trainers for transformers and TRL. Heavy imports wait until a name is used.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .trainers.config import SFTConfig, TrainingArguments
    from .trainers.sft_trainer import SFTTrainer
    from .trainers.trainer import Trainer

_HOMES = {
    "SFTConfig": ".trainers.config",
    "TrainingArguments": ".trainers.config",
    "SFTTrainer": ".trainers.sft_trainer",
    "Trainer": ".trainers.trainer",
}

__all__ = ["SFTConfig", "SFTTrainer", "Trainer", "TrainingArguments"]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
