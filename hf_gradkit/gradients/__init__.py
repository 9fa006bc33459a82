"""The backward engine: what each row of a batch contributes to the gradient, read off the backward pass as it runs."""

from .errors import GradientRecordError
from .recorder import Recorder, record_gradients

__all__ = ["GradientRecordError", "Recorder", "record_gradients"]
