"""Data selection: which rows of a data set to keep."""

from .base import Assessment, Selection, Selector
from .baselines import Length, Random
from .components import Component
from .fifa import FiFA
from .prompts import prompt_text
from .registry import SELECTORS, build_selector
from .work import Work

__all__ = [
    "Assessment",
    "Component",
    "FiFA",
    "Length",
    "Random",
    "SELECTORS",
    "Selection",
    "Selector",
    "Work",
    "build_selector",
    "prompt_text",
]
