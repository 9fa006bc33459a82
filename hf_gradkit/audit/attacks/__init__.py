"""Membership attacks: what models say of an example in, one score out, higher for a more likely member.

One attack, one file; no model needed.
"""

from .base import TokenAttack, TokenRecord, TokenScores
from .error_zone import ErrorZone
from .loss import Loss
from .min_k import MinK, MinKPlusPlus
from .reference import FLoRA, LogReference
from .registry import ATTACKS, build_attack, build_attacks
from .window import Window
from .zlib_loss import ZlibLoss

__all__ = [
    "ATTACKS",
    "ErrorZone",
    "FLoRA",
    "LogReference",
    "Loss",
    "MinK",
    "MinKPlusPlus",
    "TokenAttack",
    "TokenRecord",
    "TokenScores",
    "Window",
    "ZlibLoss",
    "build_attack",
    "build_attacks",
]
