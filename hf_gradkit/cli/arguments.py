"""Parses a job's arguments: TRL's parser, strict about names and the same for YAML and command line."""

import argparse
import dataclasses
import inspect
import os
import typing
import warnings
from enum import Enum
from typing import Any

import torch
from trl import DatasetMixtureConfig, TrlParser

from .._text import did_you_mean, listing
from .config_file import apply_environment, read_config, split_config
from .launch import LAUNCHER_KEYS, launcher_help


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Names defaults, and keeps the lines of the text below the options as they are."""


class JobParser(TrlParser):
    """TRL's parser, which raises `ValueError` instead of ending the process with its usage, 300 options long.

    Its help has hf_gradkit's own options first, apart from those of TRL and transformers.
    """

    def __init__(self, job: str, dataclass_types: tuple[type, ...]):
        super().__init__(
            dataclass_types,
            prog=f"gradkit {job}",
            usage=f"gradkit {job} [--config FILE|RECIPE] [options]",
            epilog=launcher_help(),
            formatter_class=HelpFormatter,
            allow_abbrev=False,
        )
        own = {"help"} | {name for of_type in dataclass_types for name in _own_fields(of_type)}
        self._put_first("options of hf_gradkit", own, "options of TRL and transformers")

    def _put_first(self, title: str, names: set[str], rest_title: str) -> None:
        """Move the options of these names into a group before the rest, if there is a rest."""
        first = [action for action in self._actions if action.dest in names]
        if len(first) == len(self._actions):
            return
        rest = next(group for group in self._action_groups if first[0] in group._group_actions)
        rest.title = rest_title
        rest._group_actions[:] = [action for action in rest._group_actions if action not in first]
        self.add_argument_group(title)._group_actions.extend(first)
        self._action_groups.insert(0, self._action_groups.pop())

    def error(self, message: str):
        raise ValueError(f"The command line or the YAML file could not be read: {message}.")


def _own_fields(of_type: type) -> set[str]:
    """Return the names of the fields that a class of this package, among a dataclass and its bases, declares."""
    bases = [base for base in of_type.__mro__ if base.__module__.partition(".")[0] == __name__.partition(".")[0]]
    return {name for base in bases for name in inspect.get_annotations(base)}


def parse_job(job: str, dataclass_types: tuple[type, ...], argv: list[str]) -> tuple[Any, ...]:
    """Return an instance of each dataclass, from a YAML file (`--config`) and flags, which win.

    `use_cpu` is set where there is no accelerator: without it, processes of one launch would each train alone.

    Args:
        job: name of the job, for messages.
        dataclass_types: whose fields are the options.
        argv: the arguments.

    Raises:
        ValueError: for an unknown key or flag (naming the nearest known one and the file), a value of the wrong type,
            or whatever a dataclass refuses.
    """
    parser = JobParser(job, dataclass_types)
    launched_on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    if launched_on_cpu or not torch.accelerator.is_available():
        parser.set_defaults(use_cpu=True)
    fields = {field.name: field for of_type in dataclass_types for field in dataclasses.fields(of_type) if field.init}

    config_file, flags = split_config(argv)
    config = read_config(config_file) if config_file is not None else {}
    if not any("gradient_checkpointing" in str(name).replace("-", "_") for name in (*flags, *config)):
        # TRL's default and calls speak of the old name; nobody who runs a command can change that.
        warnings.filterwarnings("ignore", r"`(is_)?gradient_checkpointing\w*` is deprecated", FutureWarning)
    if config_file is not None:
        apply_environment(config, config_file)
        for key in LAUNCHER_KEYS:  # gradkit's launcher has read them, or the user started accelerate
            config.pop(key, None)
        _check_keys(config, fields, config_file, job)
        parser.set_defaults_with_config(**{key: _as_parsed(value, fields[key]) for key, value in config.items()})
    *parsed, unknown = parser.parse_args_into_dataclasses(
        flags, return_remaining_strings=True, look_for_args_file=False
    )
    if unknown:
        raise ValueError(_unknown_flag(unknown[0], fields, job))
    return tuple(parsed)


def _check_keys(config: dict[Any, Any], fields: dict[str, Any], path: str, job: str) -> None:
    for key in config:
        if key not in fields:
            raise ValueError(
                f"{path} sets {key!r}, which is not an option of gradkit {job}.{did_you_mean(key, fields)} "
                f"`gradkit {job} --help` lists them all."
            )
    (entry_type,) = typing.get_args(typing.get_type_hints(DatasetMixtureConfig)["datasets"])
    known = [field.name for field in dataclasses.fields(entry_type)]
    entries = config.get("datasets") or []
    if not isinstance(entries, list):
        raise ValueError(f"`datasets` in {path} must be a list of data sets, but it is {entries!r}.")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or "path" not in entry:
            raise ValueError(f"Entry {number} of `datasets` in {path} must be a mapping with a `path`, not {entry!r}.")
        for key in entry:
            if key not in known:
                raise ValueError(
                    f"Entry {number} of `datasets` in {path} sets {key!r}, which a data set does not have."
                    f"{did_you_mean(key, known)} Known keys: {listing(known)}."
                )


def _as_parsed(value: Any, field: dataclasses.Field) -> Any:
    """Return a YAML value such that the parser checks and converts it as it does the command line's.

    The parser only looks at defaults that are strings; the field's type is resolved by the parser's constructor.
    """
    kind = field.type
    if isinstance(value, (int, float)) and (kind in (int, float) or not isinstance(value, bool)):
        return str(value)  # 2.5 or true for an integer is refused
    if value is False and isinstance(kind, type) and issubclass(kind, Enum):
        return "no"  # `eval_strategy: no`: YAML reads "no" as false
    if isinstance(value, str) and typing.get_origin(kind) is list:
        return [value]
    return value


def _unknown_flag(argument: str, fields: dict[str, Any], job: str) -> str:
    if not argument.startswith("-"):
        return f"The argument {argument!r} belongs to no option. `gradkit {job} --help` lists the options."
    name = argument.lstrip("-").partition("=")[0].replace("-", "_")
    if name in (*LAUNCHER_KEYS, "dry_run"):
        return f"--{name} is for the launcher: use `gradkit {job} --{name} ...`, or give it to `accelerate launch`."
    near = did_you_mean(name, fields).replace("'", "'--", 1)
    return f"{argument.partition('=')[0]} is not an option of gradkit {job}.{near} `gradkit {job} --help` lists them."
