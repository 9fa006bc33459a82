"""Starts a job: in this process, or through `accelerate launch` as several.

This module is imported before anything heavy is, so that `--dry_run` and the hand-over to accelerate are quick.
"""

import argparse
import importlib
import importlib.util
import os
import shlex
import sys
import textwrap
from pathlib import Path
from typing import Any

import yaml

from ..data.resources import find_accelerate_config, resources
from .config_file import apply_environment, read_config, split_config
from .errors import USER_ERRORS, report

# Options of `accelerate launch` that gradkit takes on its own command line or in the YAML, and passes on.
LAUNCHER_FLAGS = (
    "num_processes",
    "num_machines",
    "machine_rank",
    "main_process_ip",
    "main_process_port",
    "same_network",
    "mixed_precision",
    "gpu_ids",
)
LAUNCHER_KEYS = ("accelerate_config", *LAUNCHER_FLAGS)

_HELP = {
    "a file of options": {
        "--config FILE|RECIPE": "a YAML file, or the name of one of `gradkit recipes`, with any of the options above "
        "and below; flags win over the file",
    },
    "starting several processes": {
        "--accelerate_config NAME|PATH": "start through `accelerate launch` with this configuration; NAME is one of "
        + ", ".join(resources("accelerate_configs")),
        "--" + " --".join(LAUNCHER_FLAGS): "passed on to `accelerate launch`; without --accelerate_config they mean "
        "multi_gpu, and without --num_processes one process is started for each visible GPU",
        "--dry_run": "print the command that would be started, and start nothing",
    },
}


def launcher_help() -> str:
    """Return the part of a job's help about the options that its own parser does not know."""
    lines = []
    for title, options in _HELP.items():
        lines += ["", f"{title}:"]
        for names, meaning in options.items():
            lines += textwrap.wrap(names, 78, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
            lines += textwrap.wrap(meaning, 78, initial_indent=" " * 24, subsequent_indent=" " * 24)
    return "\n".join(lines[1:])


def main(name: str, module: str, argv: list[str]) -> int:
    """Run a job's module with the arguments, here or through accelerate.

    Args:
        name: the job's name on the command line.
        module: has `main(argv) -> int` and can be run with `python -m`.
        argv: the job's arguments and the launcher's.
    """
    if "-h" in argv or "--help" in argv:
        kind = [word for word in argv[:1] if not word.startswith("-")]  # `gradkit audit extraction --help`
        return importlib.import_module(module).main([*kind, "--help"])
    try:
        options, rest = _split(argv)
        dry_run = options.pop("dry_run")
        if not options:
            if dry_run:
                print(shlex.join([sys.executable, "-m", module, *rest]))
                return 0
            return importlib.import_module(module).main(rest)
        command = launch_command(module, rest, options, check=not dry_run)
    except USER_ERRORS as error:
        return report(error)
    if dry_run:
        print(shlex.join(command))
        return 0
    sys.stdout.flush()
    # The process becomes accelerate's launcher: signals and the exit code need no passing on.
    os.execv(command[0], command)


def _split(argv: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Split a job's arguments into the launcher's options, those set, and the job's own."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("--dry_run", "--dry-run", action="store_true", default=False)
    for flag in LAUNCHER_KEYS:
        names = dict.fromkeys([f"--{flag}", f"--{flag.replace('_', '-')}"])
        parser.add_argument(*names, **({"action": "store_true"} if flag == "same_network" else {}))
    parser.error = _raise
    options, rest = parser.parse_known_args(argv)

    config_file, rest = split_config(rest)
    if config_file is None:
        return vars(options), rest
    config = read_config(config_file)
    apply_environment(config, config_file)  # also what the launcher itself reads, CUDA_VISIBLE_DEVICES for one
    of_file = {key: config[key] for key in LAUNCHER_KEYS if config.get(key) is not None}
    return {**of_file, **vars(options)}, ["--config", config_file, *rest]


def _raise(message: str) -> None:
    raise ValueError(f"The command line could not be read: {message}.")


def launch_command(module: str, arguments: list[str], options: dict[str, Any], check: bool = True) -> list[str]:
    """Return the command that starts a module through `accelerate launch`.

    Args:
        module: is run with `-m`, with `arguments`.
        options: values of `LAUNCHER_KEYS`.
        check: raise for what this machine lacks; a dry run may be on another machine than the job.

    Raises:
        ValueError: for an unknown configuration, or one that would not start the processes that were asked for.
    """
    name = str(options.get("accelerate_config", "multi_gpu"))
    path = find_accelerate_config(name)
    config = _read_launch_config(path)
    flags = {flag: options[flag] for flag in LAUNCHER_FLAGS if options.get(flag) is not None}
    if "num_processes" not in flags and path == resources("accelerate_configs").get(name):
        flags.update(_one_process_a_gpu(config, flags))
    _check_processes(config, flags, path)
    if check:
        _check_machine(config, name)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(path)]
    for flag, value in flags.items():
        if flag != "same_network":
            command += [f"--{flag}", str(value)]
        elif value:
            command.append("--same_network")
    return [*command, "-m", module, *arguments]


def _read_launch_config(path: Path) -> dict[str, Any]:
    config = yaml.safe_load(path.read_text())  # JSON, which accelerate takes as well, is YAML
    if not isinstance(config, dict) or "distributed_type" not in config:
        raise ValueError(
            f"{path} is not a configuration of accelerate: it has no `distributed_type`. Write one with "
            "`accelerate config`, or use a name that comes with hf-gradkit."
        )
    return config


def _one_process_a_gpu(config: dict[str, Any], flags: dict[str, Any]) -> dict[str, int]:
    """Our files say 8 GPUs a machine; where it is known how many there are, use those."""
    if config["distributed_type"] == "NO" or config.get("use_cpu"):
        return {}
    if flags.get("gpu_ids") not in (None, "all"):
        count = len(str(flags["gpu_ids"]).split(","))
    else:
        count = visible_accelerators()
    machines = int(flags.get("num_machines") or config.get("num_machines") or 1)
    return {"num_processes": count * machines} if count else {}


def visible_accelerators() -> int:
    """Return how many GPUs, or other accelerators, this process could use."""
    import torch

    return torch.accelerator.device_count()


def _check_processes(config: dict[str, Any], flags: dict[str, Any], path: Path) -> None:
    """Refuse a configuration with which accelerate silently starts one process where several were asked for."""
    backend = config["distributed_type"]
    processes = int(flags.get("num_processes", 1 if backend == "NO" else config.get("num_processes") or 1))
    single = backend == "NO" or (backend == "MULTI_CPU" and not config.get("mpirun_config"))
    if single and processes > 1:
        raise ValueError(
            f"{processes} processes were asked for, but `distributed_type: {backend}` in {path} starts only one. Use "
            "--accelerate_config multi_gpu, or cpu/multi_gpu on a machine without a GPU."
        )


def _check_machine(config: dict[str, Any], name: str) -> None:
    """Refuse to start what is known to fail on this machine."""
    if config["distributed_type"] == "DEEPSPEED" and importlib.util.find_spec("deepspeed") is None:
        raise ValueError(
            f"The launch configuration {name!r} needs DeepSpeed, which is not installed: "
            'pip install "hf-gradkit[deepspeed]".'
        )
    if not config.get("use_cpu") and visible_accelerators() == 0:
        raise ValueError(
            f"The launch configuration {name!r} is for GPUs, and none is visible on this machine. Leave out "
            "--accelerate_config to train in one process, or use --accelerate_config cpu/multi_gpu to try several."
        )
