"""The trainers' configurations: the parents' fields and ours."""

from dataclasses import dataclass
from typing import ClassVar

import transformers
import trl

from .data_filter import DataFilterArguments
from .monitors import MonitorArguments
from .options import ExampleArguments
from .preference_options import PreferenceArguments


@dataclass
class TrainingArguments(ExampleArguments, MonitorArguments, transformers.TrainingArguments):
    __doc__ = f"""Arguments of [`hf_gradkit.Trainer`]: those of [`transformers.TrainingArguments`] and

    {ExampleArguments.__doc__}

    {MonitorArguments.__doc__}"""


@dataclass
class SFTConfig(ExampleArguments, MonitorArguments, trl.SFTConfig):
    __doc__ = f"""Arguments of [`hf_gradkit.SFTTrainer`]: those of [`trl.SFTConfig`] and

    {ExampleArguments.__doc__}

    {MonitorArguments.__doc__}"""

    MONITORS: ClassVar[tuple[str, ...]] = (*MonitorArguments.MONITORS, "privacy_audit")


@dataclass
class DPOConfig(PreferenceArguments, DataFilterArguments, MonitorArguments, trl.DPOConfig):
    __doc__ = f"""Arguments of [`hf_gradkit.DPOTrainer`]: those of [`trl.DPOConfig`] and

    {PreferenceArguments.__doc__}

    {DataFilterArguments.__doc__}

    {MonitorArguments.__doc__}

    {ExampleArguments.__doc__}"""

    MONITORS: ClassVar[tuple[str, ...]] = ("entanglement", *MonitorArguments.MONITORS)


@dataclass
class RewardConfig(MonitorArguments, trl.RewardConfig):
    __doc__ = f"""Arguments of [`hf_gradkit.RewardTrainer`]: those of [`trl.RewardConfig`] and

    {MonitorArguments.__doc__}"""
