"""The trainers' configurations: the parents' fields and ours."""

from dataclasses import dataclass
from typing import ClassVar

import transformers
import trl

from .data_filter import DataFilterArguments
from .hold_out import HoldOutArguments
from .monitors import MonitorArguments
from .options import ExampleArguments
from .preference_options import PreferenceArguments
from .resampling import SamplerArguments


@dataclass
class TrainingArguments(ExampleArguments, HoldOutArguments, MonitorArguments, transformers.TrainingArguments):
    __doc__ = f"""Arguments of [`hf_gradkit.Trainer`]: those of [`transformers.TrainingArguments`] and

    {ExampleArguments.__doc__}

    {HoldOutArguments.__doc__}

    {MonitorArguments.__doc__}"""

    MONITORS: ClassVar[tuple[str, ...]] = (*MonitorArguments.MONITORS, "privacy_audit")


@dataclass
class SFTConfig(ExampleArguments, SamplerArguments, HoldOutArguments, MonitorArguments, trl.SFTConfig):
    __doc__ = f"""Arguments of [`hf_gradkit.SFTTrainer`]: those of [`trl.SFTConfig`] and

    {ExampleArguments.__doc__}

    {SamplerArguments.__doc__}

    {HoldOutArguments.__doc__}

    {MonitorArguments.__doc__}"""

    MONITORS: ClassVar[tuple[str, ...]] = (*MonitorArguments.MONITORS, "privacy_audit")


@dataclass
class DPOConfig(PreferenceArguments, DataFilterArguments, HoldOutArguments, MonitorArguments, trl.DPOConfig):
    __doc__ = f"""Arguments of [`hf_gradkit.DPOTrainer`]: those of [`trl.DPOConfig`] and

    {PreferenceArguments.__doc__}

    {DataFilterArguments.__doc__}

    {HoldOutArguments.__doc__}

    {MonitorArguments.__doc__}

    {ExampleArguments.__doc__}"""

    MONITORS: ClassVar[tuple[str, ...]] = ("entanglement", "privacy_audit", *MonitorArguments.MONITORS)


@dataclass
class RewardConfig(HoldOutArguments, MonitorArguments, trl.RewardConfig):
    __doc__ = f"""Arguments of [`hf_gradkit.RewardTrainer`]: those of [`trl.RewardConfig`] and

    {HoldOutArguments.__doc__}

    {MonitorArguments.__doc__}"""
