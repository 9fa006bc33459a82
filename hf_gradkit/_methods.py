"""Finds and builds methods - small frozen dataclasses - by their name or import path, for every kind there is."""

import dataclasses
import importlib
from dataclasses import dataclass
from typing import Any

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
    module_name, _, class_name = path.partition(":")
    try:
        method = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"The {kind.name} {path!r} could not be imported: {error}. Write 'package.module:Class' and make "
            "sure that the module is on the Python path of every process."
        ) from error
    if not (dataclasses.is_dataclass(method) and all(hasattr(method, name) for name in kind.attributes)):
        raise ValueError(f"{path!r} is not a {kind.name}: it must be {kind.contract}.")
    return method


def build(kind: Kind, name: str, method: type, options: dict[str, Any], known: list[str] | None = None) -> Any:
    """Return an instance of a method with its options.

    Args:
        kind: what it is.
        name: its name, for messages.
        method: its class.
        options: values of its fields.
        known: the options that messages name; the method's own when None.

    Raises:
        ValueError: for an unknown option (naming the known ones) or a value out of its domain.
    """
    own = option_names(method)
    for option in options:
        if option not in own:
            named = own if known is None else known
            raise ValueError(
                f"The {kind.name} {name!r} has no option {option!r}.{did_you_mean(option, named)} "
                f"Its options: {listing(named) or 'none'}."
            )
    return method(**options)


def option_names(method: type) -> list[str]:
    """Return the names of a method's options."""
    return [field.name for field in dataclasses.fields(method) if field.init]
