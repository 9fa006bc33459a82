"""The names by which trainers, configurations and the command line know selectors."""

from dataclasses import replace
from typing import Any

from .._methods import Kind, build
from .base import Selector
from .baselines import Length, Random
from .difficulty import EL2N, GraNd, Perplexity
from .fifa import FiFA
from .ifd import IFD
from .influence import GradCos
from .sampling import PADA

SELECTORS: dict[str, type[Selector]] = {
    selector.name: selector for selector in (FiFA, Random, Length, Perplexity, EL2N, GraNd, IFD, GradCos, PADA)
}

SELECTOR = Kind(
    name="selector",
    option="by",
    example="'fifa'",
    kwargs="selector_kwargs",
    contract="a frozen dataclass that inherits from `hf_gradkit.selection.Selector`",
    attributes=("assess", "select"),
)


def build_selector(name: str, options: dict[str, Any], field: str = "by", kwargs: str = "selector_kwargs") -> Selector:
    """Return the selector `name` with its options.

    Args:
        name: a name of `SELECTORS`, or `"package.module:Class"` for one that lives outside this package.
        options: values of its fields.
        field: of the configuration that names it, for messages.
        kwargs: the field with its options, for messages.

    Raises:
        ValueError: for an unknown selector or option (naming the known ones) or a value out of its domain.
    """
    kind = replace(SELECTOR, option=field, kwargs=kwargs)
    return build(kind, name, SELECTORS, options)
