"""What attacks' scores say: ROC, intervals, and the gate that looks for confounding."""

from .figures import ALPHAS, Trial
from .gate import BlindRecord, gate
from .intervals import bootstrap, clopper_pearson, percentiles, require_sklearn
from .roc import auc, null_error, rate_at, roc

__all__ = [
    "ALPHAS",
    "BlindRecord",
    "Trial",
    "auc",
    "bootstrap",
    "clopper_pearson",
    "gate",
    "null_error",
    "percentiles",
    "rate_at",
    "require_sklearn",
    "roc",
]
