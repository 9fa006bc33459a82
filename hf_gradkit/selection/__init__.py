"""Data selection: which rows of a data set to keep."""

from .base import Assessment, Selection, Selector
from .baselines import Length, Random
from .components import Component
from .difficulty import EL2N, GraNd, Perplexity
from .fifa import FiFA
from .ifd import IFD
from .influence import GradCos
from .personal_loss import PersonalLossSampler
from .prompts import prompt_text
from .registry import SELECTORS, build_selector
from .sampling import PADA
from .work import Work

__all__ = [
    "Assessment",
    "Component",
    "EL2N",
    "FiFA",
    "GraNd",
    "GradCos",
    "IFD",
    "Length",
    "PADA",
    "Perplexity",
    "PersonalLossSampler",
    "Random",
    "SELECTORS",
    "Selection",
    "Selector",
    "Work",
    "build_selector",
    "prompt_text",
]
