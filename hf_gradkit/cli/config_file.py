"""Reads a job's YAML file."""

import os
from pathlib import Path
from typing import Any

import yaml

from ..data.resources import find_recipe


def split_config(argv: list[str]) -> tuple[str | None, list[str]]:
    """Take `--config FILE` out of a job's arguments.

    Returns:
        The file, with the name of a recipe replaced by its path, or None without one; the other arguments.

    Raises:
        ValueError: if the file is missing, or given twice.
    """
    found, rest, arguments = [], [], iter(argv)
    for argument in arguments:
        if argument == "--config":
            found.append(next(arguments, ""))
        elif argument.startswith("--config="):
            found.append(argument.removeprefix("--config="))
        else:
            rest.append(argument)
    if not found:
        return None, rest
    if len(found) > 1:
        raise ValueError(f"--config was given {len(found)} times ({', '.join(found)}). Give it once.")
    return _find(found[0]), rest


def _find(name: str) -> str:
    if not name:
        raise ValueError("--config needs a file after it.")
    if Path(name).is_file():
        return name
    try:
        return str(find_recipe(name))
    except ValueError as error:
        raise ValueError(f"--config names {name!r}, but there is no such file. As a recipe: {error}") from None


def read_config(path: str) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        ValueError: if the file is not YAML or not a mapping.
    """
    try:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if config is None:
        return {}
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold `option: value` lines, but it holds a {type(config).__name__}.")
    return config


def apply_environment(config: dict[str, Any], path: str) -> None:
    """Set the environment variables that the `env` of a configuration names, and take it out of the configuration.

    Raises:
        ValueError: if `env` is not a mapping.
    """
    variables = config.pop("env", None) or {}
    if not isinstance(variables, dict):
        raise ValueError(f"`env` in {path} must be a mapping of names to values, but it is {variables!r}.")
    os.environ.update({str(name): str(value) for name, value in variables.items()})
