"""Data selection: which rows of a data set to keep."""

from .base import Assessment, Selection, Selector
from .components import Component
from .fifa import FiFA
from .prompts import prompt_text
from .work import Work

__all__ = ["Assessment", "Component", "FiFA", "Selection", "Selector", "Work", "prompt_text"]
