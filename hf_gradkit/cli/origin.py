"""What started a job, for its page: the command, the YAML file, and the names of the data sets."""

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .config_file import read_config, split_config

COMMAND = "GRADKIT_COMMAND"  # environment variable with the command line, for the processes that it starts


@contextmanager
def noted(name: str, argv: list[str]) -> Iterator[None]:
    """Note the command line for the job that it starts, here or in the processes that take this one's place."""
    os.environ[COMMAND] = shlex.join(["gradkit", name, *argv])
    try:
        yield
    finally:
        os.environ.pop(COMMAND, None)


def noted_command(job: str, argv: list[str]) -> list[str]:
    """Return the words of the command line that a job was started by; `argv` are the job's own arguments."""
    noted = shlex.split(os.environ.get(COMMAND, ""))
    return noted if noted[:2] == ["gradkit", job] else ["python", "-m", f"hf_gradkit.cli.{job}", *argv]


def origin_of_job(job: str, argv: list[str], script: Any, mixture: Any) -> dict[str, Any]:
    """Return what started a training job.

    Args:
        job: its name on the command line.
        argv: its arguments.
        script: its arguments about the data.
        mixture: its mixture of data sets.
    """
    from ..reporting.run_info import origin  # loads torch, which `gradkit --help` must not wait for

    path, _ = split_config(argv)
    config = None if path is None else read_config(path)
    return origin(noted_command(job, argv), config, _data(script, mixture))


def _data(script: Any, mixture: Any) -> list[dict[str, Any]]:
    train = [_entry(of.path, "train", of.name, of.split) for of in mixture.datasets or []]
    if script.dataset_name:
        train.append(_entry(script.dataset_name, "train", script.dataset_config, script.dataset_train_split))
    named = script.eval_dataset_name or script.dataset_name
    # One file has no splits of its own: it is all of the training data.
    splits = bool(named) and (script.eval_dataset_name is not None or not Path(named).is_file())
    return [*train, *([_entry(named, "eval", script.dataset_config, script.dataset_test_split)] if splits else [])]


def _entry(name: str, role: str, config: str | None, split: str | None) -> dict[str, Any]:
    path = Path(name).expanduser()
    split = None if path.is_file() else split  # a file is one split
    return {"name": name, "role": role, "config": config, "split": split, "local": path.exists()}
