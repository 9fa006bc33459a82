"""TrainerCallbacks that read the engines and log what they find."""

from .entanglement import EntanglementCallback
from .gradient_statistics import GradientStatisticsCallback
from .worker_consistency import WorkerConsistencyCallback

__all__ = ["EntanglementCallback", "GradientStatisticsCallback", "WorkerConsistencyCallback"]
