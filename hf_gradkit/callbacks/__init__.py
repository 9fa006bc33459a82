"""TrainerCallbacks that read the engines and log what they find."""

from .entanglement import EntanglementCallback

__all__ = ["EntanglementCallback"]
