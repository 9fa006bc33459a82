"""Finds and builds methods - small frozen dataclasses - by their name or import path, for every kind there is."""

import dataclasses
import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._text import did_you_mean, listing


@dataclass(frozen=True)
class Kind:
    """A kind of method, in the words of its users.

    Args:
        name: such as "weighting method".
        option: the configuration's field that names one.
        example: a value of it.
        kwargs: the field with its options.
        contract: what a class of the user's own must be.
        attributes: what such a class must have.
    """

    name: str
    option: str
    example: str
    kwargs: str
    contract: str
    attributes: tuple[str, ...]


def find_class(kind: Kind, name: str, known: dict[str, type]) -> type:
    """Return the class of a method.

    Args:
        kind: what is looked for.
        name: a name of `known`, or `"package.module:Class"` for a method that lives outside this package.
        known: the methods that come with this package.

    Raises:
        ValueError: if there is no such method; the message names the known ones.
    """
    if not isinstance(name, str):
        raise ValueError(
            f"`{kind.option}` must be a name such as {kind.example}, but it is {name!r}. Options go into "
            f"`{kind.kwargs}`; in YAML, quote 'no' and 'off', which mean false there."
        )
    if name in known:
        return known[name]
    if ":" in name:
        return _import_class(kind, name)
    raise ValueError(
        f"There is no {kind.name} {name!r}.{did_you_mean(name, known)} Known methods: {listing(known)}; a "
        "method of your own is named by its import path, 'package.module:Class'."
    )


def _import_class(kind: Kind, path: str) -> type:
    method = import_by_path(kind.name, path)
    if not (dataclasses.is_dataclass(method) and all(hasattr(method, name) for name in kind.attributes)):
        raise ValueError(f"{path!r} is not a {kind.name}: it must be {kind.contract}.")
    return method


def import_by_path(what: str, path: str, form: str = "package.module:Class") -> Any:
    """Return what an import path names.

    Args:
        what: such as "weighting method", for messages.
        path: module and name with a colon between them.
        form: how such a path is written, for messages.

    Raises:
        ValueError: if there is no such module or name.
    """
    module_name, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"The {what} {path!r} could not be imported: {error}. Write {form!r} and make sure that the module is on "
            "the Python path of every process."
        ) from error


def build(kind: Kind, name: str, known: dict[str, type], options: dict[str, Any]) -> Any:
    """Return an instance of a method with its options.

    Args:
        kind: what it is.
        name: a name of `known`, or `"package.module:Class"` for a method that lives outside this package.
        known: the methods that come with this package.
        options: values of its fields.

    Raises:
        ValueError: for an unknown method or option (naming the known ones) or a value out of its domain.
    """
    method = find_class(kind, name, known)
    own = option_names(method)
    for option in options:
        if option not in own:
            raise ValueError(
                f"The {kind.name} {name!r} has no option {option!r}.{did_you_mean(option, own)} "
                f"Its options: {listing(own) or 'none'}."
            )
    return method(**options)


def plain(value: Any) -> Any:
    """Return an option with Python's numbers in place of numpy's, which neither JSON nor YAML can write."""
    if isinstance(value, np.generic):
        return value.item()
    return {name: plain(part) for name, part in value.items()} if type(value) is dict else value


def option_names(method: type) -> list[str]:
    """Return the names of a method's options."""
    return [field.name for field in dataclasses.fields(method) if field.init]
