"""Privacy audit: what a fine-tuned model gives away about its training data.

Heavy imports wait until they are used.
"""

import importlib
from typing import TYPE_CHECKING

from ..data.duplicates import drop_duplicates
from ..data.hold_out import hold_out

if TYPE_CHECKING:
    from .extraction import audit_extraction
    from .membership import audit_membership

_HOMES = {"audit_extraction": ".extraction", "audit_membership": ".membership"}

__all__ = ["audit_extraction", "audit_membership", "drop_duplicates", "hold_out"]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)
