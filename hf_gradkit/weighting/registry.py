"""The names by which trainers, configurations and the command line know weighting methods."""

from typing import Any

from .._methods import Kind, build, find_class
from .extremes import Extremes
from .linupper import LinUpper
from .madpo import MADPO
from .quadratic import Quadratic
from .uniform import Uniform

METHODS: dict[str, type] = {
    "none": Uniform,
    "linupper": LinUpper,
    "quadratic": Quadratic,
    "extremes": Extremes,
    "madpo": MADPO,
}

WEIGHTING = Kind(
    name="weighting method",
    option="weighting",
    example="'linupper' or 'none'",
    kwargs="weighting_kwargs",
    contract=(
        "a frozen dataclass with a class attribute `record_type` (`hf_gradkit.weighting.LossRecord` for losses, "
        "`PairRecord` for the margins of preference pairs) that maps one record to one multiplier an example"
    ),
    attributes=("record_type",),
)


def find_method(name: str) -> type:
    """Return the class of a weighting method.

    Args:
        name: a name of `METHODS`, or `"package.module:Class"` for a method that lives outside this package.

    Raises:
        ValueError: if there is no such method; the message names the known ones.
    """
    return find_class(WEIGHTING, name, METHODS)


def build_method(name: str, options: dict[str, Any]) -> Any:
    """Return the method `name` with its options.

    Raises:
        ValueError: for an unknown method or option (naming the known ones) or a value out of its domain.
    """
    return build(WEIGHTING, name, METHODS, options)
