"""Builds a method together with what surrounds it, from the one flat dictionary that users write."""

from typing import Any

from .._methods import option_names
from .._text import did_you_mean, listing
from .base import LossRecord, PairRecord
from .calibration import Calibration
from .registry import build_method, find_method
from .scope import Comparison

# What surrounds a method depends on what it looks at: losses are compared with others, margins are calibrated.
SURROUNDINGS: dict[type, type] = {LossRecord: Comparison, PairRecord: Calibration}


def build_weighting(name: str, options: dict[str, Any]) -> tuple[Any, Any]:
    """Return the method `name` and its [`Comparison`] (losses) or [`Calibration`] (margins).

    Args:
        name: of the method, or its import path.
        options: of the method and of what surrounds it, in one dictionary.

    Raises:
        ValueError: for an unknown method or option (naming the known ones) or a value out of its domain.
    """
    method = find_method(name)
    if method.record_type not in SURROUNDINGS:
        raise ValueError(
            f"The weighting method {name!r} has the record type {method.record_type!r}. It must be one of "
            f"{listing(record.__name__ for record in SURROUNDINGS)} of `hf_gradkit.weighting`."
        )
    around = SURROUNDINGS[method.record_type]
    of_method, of_surroundings = option_names(method), option_names(around)
    for option in options:
        if option not in of_method and option not in of_surroundings:
            known = [*of_method, *of_surroundings]
            raise ValueError(
                f"`weighting_kwargs` has no option {option!r} for weighting={name!r}.{did_you_mean(option, known)} "
                f"Known options: {listing(known)}."
            )
    return (
        build_method(name, {key: value for key, value in options.items() if key in of_method}),
        around(**{key: value for key, value in options.items() if key in of_surroundings}),
    )
