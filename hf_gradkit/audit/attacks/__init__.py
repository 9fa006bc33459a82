"""Membership attacks: what models say of an example in, one score out, higher for a more likely member.

One attack, one file; no model needed.
"""

from .base import TokenAttack, TokenRecord, TokenScores
from .error_zone import ErrorZone
from .gradient import GradientNorm, GradientRecord, StepRatio
from .loss import Loss
from .min_k import MinK, MinKPlusPlus
from .reference import FLoRA, LogReference
from .registry import ATTACKS, build_attack, build_attacks
from .supervised import FeatureRecord, Supervised
from .window import Window
from .zlib_loss import ZlibLoss

__all__ = [
    "ATTACKS",
    "ErrorZone",
    "FeatureRecord",
    "FLoRA",
    "GradientNorm",
    "GradientRecord",
    "LogReference",
    "Loss",
    "MinK",
    "MinKPlusPlus",
    "StepRatio",
    "Supervised",
    "TokenAttack",
    "TokenRecord",
    "TokenScores",
    "Window",
    "ZlibLoss",
    "build_attack",
    "build_attacks",
]
