"""`gradkit_run.json`: what a run was, for reports and for the page on the Hub."""

import dataclasses
import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from .._compat import versions

FILE = "gradkit_run.json"
LIBRARIES = ("hf-gradkit", "torch", "transformers", "trl", "peft", "accelerate", "datasets")
SECRETS = ("hub_token", "push_to_hub_token")  # options whose values are nobody's business
# Where `datasets` keeps a Hub data set: <cache>/<owner>___<name>/<config>/<version>/<commit>/<file>.
HUB_FILE = re.compile(r"/(?P<owner>[^/]+)___(?P<name>[^/]+)/(?P<config>[^/]+)/[^/]+/(?P<revision>[0-9a-f]{40})/[^/]+$")


def write_run_info(trainer: Any, facts: dict[str, Any]) -> None:
    """Write the run's method, settings, model, data, command and versions to its output folder.

    The settings are those fields of the configuration that differ from their defaults; tokens are left out. `facts` is
    what was found out beyond them, such as a fitted temperature. `trainer.run_origin` is what started the run (see
    [`origin`]); without it, the script that runs and what the data set knows of itself.
    """
    info = describe_run(trainer, facts)
    folder = Path(trainer.args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / (FILE + ".tmp")
    temporary.write_text(json.dumps(info, indent=2, default=str) + "\n")
    os.replace(temporary, folder / FILE)


def describe_run(trainer: Any, facts: dict[str, Any]) -> dict[str, Any]:
    """Return what [`write_run_info`] writes."""
    args = trainer.args
    settings = {}
    for field in dataclasses.fields(args):
        value = getattr(args, field.name, None)
        has_default = field.default is not dataclasses.MISSING and value == field.default
        if field.init and not has_default and not field.name.endswith("token") and value is not None:
            settings[field.name] = value
    return {
        "format": 1,
        "trainer": type(trainer).__name__,
        "model": _model_name(trainer.model),
        **_base_model(trainer.model),
        "weighting": getattr(args, "weighting", "none"),
        **facts,
        "settings": settings,
        "rows": _rows(trainer.train_dataset),
        **_origin(trainer),
        "processes": trainer.accelerator.num_processes,
        "distributed_type": trainer.accelerator.distributed_type.value,
        "versions": versions(LIBRARIES),
    }


def origin(command: list[str], config: dict[str, Any] | None, data: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what started a run, without tokens.

    Args:
        command: its words.
        config: what its YAML file says, or None without one.
        data: of each data set `name`, `role` ("train" or "eval"), and `config`, `split`, `revision` where known.
    """
    kept = {key: value for key, value in (config or {}).items() if key not in (*SECRETS, "env")}
    return {"command": shlex.join(without_secrets(command)), "config": kept or None, "data": data}


def without_secrets(command: list[str]) -> list[str]:
    """Return a command with `...` in the place of tokens."""
    hidden, after = [], False
    for word in command:
        name, equals, _ = word.partition("=")
        secret = name.lstrip("-").replace("-", "_") in SECRETS and name.startswith("--")
        hidden.append("..." if after else f"{name}=..." if secret and equals else word)
        after = secret and not equals
    return hidden


def data_of(dataset: Any, role: str) -> list[dict[str, Any]]:
    """Return which data sets of the Hub a data set was loaded from, by where its files are; none where it is not."""
    files = [file["filename"].replace(os.sep, "/") for file in getattr(dataset, "cache_files", None) or []]
    found = {match.groups(): match for match in map(HUB_FILE.search, files) if match}
    split = getattr(dataset, "split", None)
    return [
        {
            "name": f"{match['owner']}/{match['name']}",
            "role": role,
            "config": None if match["config"] == "default" else match["config"],
            "split": str(split) if split and len(found) == 1 else None,
            "revision": match["revision"],
        }
        for match in found.values()
    ]


def _origin(trainer: Any) -> dict[str, Any]:
    """Return what started a run; without a command of ours the script, and in a notebook no command at all."""
    evaluation = trainer.eval_dataset
    sets = evaluation.values() if isinstance(evaluation, dict) else [evaluation]
    data = [*data_of(trainer.train_dataset, "train"), *(entry for one in sets for entry in data_of(one, "eval"))]
    given = getattr(trainer, "run_origin", None)
    if given is None:
        script = sys.argv[0] if sys.argv and sys.argv[0].endswith(".py") else None
        return origin(["python", Path(script).name, *sys.argv[1:]] if script else [], None, data)
    commits = {entry["name"]: entry["revision"] for entry in data}
    named = [{"revision": commits.get(entry["name"]), **entry} for entry in given["data"]]
    return {**given, "data": named}


def _model_name(model: Any) -> str:
    config = getattr(model, "config", None)
    return getattr(config, "_name_or_path", "") or getattr(config, "model_type", type(model).__name__)


def _base_model(model: Any) -> dict[str, Any]:
    """Return the name that the model was loaded by, "" if by none, whether that is a folder, and its commit."""
    config = getattr(model, "config", None)
    name = str(getattr(config, "_name_or_path", "") or "")
    return {
        "base_model": name,
        "base_model_is_local": bool(name) and Path(name).expanduser().exists(),
        "model_revision": getattr(config, "_commit_hash", None),
    }


def _rows(dataset: Any) -> int | None:
    return len(dataset) if hasattr(dataset, "__len__") else None
