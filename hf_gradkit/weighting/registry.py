"""The names by which trainers, configurations and the command line know weighting methods."""

import dataclasses
import importlib
from typing import Any

from .._text import did_you_mean, listing
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


def find_method(name: str) -> type:
    """Return the class of a weighting method.

    Args:
        name: a name of `METHODS`, or `"package.module:Class"` for a method that lives outside this package.

    Raises:
        ValueError: if there is no such method; the message names the known ones.
    """
    if not isinstance(name, str):
        raise ValueError(
            f"`weighting` must be a name such as 'linupper' or 'none', but it is {name!r}. Options go into "
            "`weighting_kwargs`; in YAML, quote 'no' and 'off', which mean false there."
        )
    if name in METHODS:
        return METHODS[name]
    if ":" in name:
        return _import_method(name)
    raise ValueError(
        f"There is no weighting method {name!r}.{did_you_mean(name, METHODS)} Known methods: {listing(METHODS)}; a "
        "method of your own is named by its import path, 'package.module:Class'."
    )


def _import_method(path: str) -> type:
    module_name, _, class_name = path.partition(":")
    try:
        method = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"The weighting method {path!r} could not be imported: {error}. Write 'package.module:Class' and make "
            "sure that the module is on the Python path of every process."
        ) from error
    if not (dataclasses.is_dataclass(method) and hasattr(method, "record_type")):
        raise ValueError(
            f"{path!r} is not a weighting method: it must be a frozen dataclass with a class attribute `record_type` "
            "(for losses, `hf_gradkit.weighting.LossRecord`) that maps one record to one multiplier an example."
        )
    return method


def build_method(name: str, options: dict[str, Any]) -> Any:
    """Return the method `name` with its options.

    Raises:
        ValueError: for an unknown method or option (naming the known ones) or a value out of its domain.
    """
    method = find_method(name)
    known = option_names(method)
    for option in options:
        if option not in known:
            raise ValueError(
                f"The weighting method {name!r} has no option {option!r}.{did_you_mean(option, known)} "
                f"Its options: {listing(known) or 'none'}."
            )
    return method(**options)


def option_names(method: type) -> list[str]:
    """Return the names of a method's options."""
    return [field.name for field in dataclasses.fields(method)]
