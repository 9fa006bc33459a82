"""Sentences of messages that several rooms of the package need."""

import difflib
from collections.abc import Iterable
from typing import Any


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the nearest of `known`, or an empty string when none is near."""
    near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def listing(names: Iterable[str]) -> str:
    """Return the names quoted and separated by commas, for an error message."""
    return ", ".join(repr(name) for name in names)


def check_whole_number(name: str, value: Any, least: int) -> None:
    """Raise `ValueError` unless an option is a whole number of at least `least`; True and 3.0 are none."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"`{name}` must be a whole number of at least {least}, but it is {value!r}.")
