"""`gradkit_run.json`: what a run was, for reports and cards."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from .._compat import versions

FILE = "gradkit_run.json"
LIBRARIES = ("hf-gradkit", "torch", "transformers", "trl", "peft", "accelerate", "datasets")


def write_run_info(trainer: Any, facts: dict[str, Any]) -> None:
    """Write the run's method, settings, model, size and versions to its output folder.

    The settings are those fields of the configuration that differ from their defaults; tokens are left out. `facts` is
    what was found out beyond them, such as a fitted temperature.
    """
    args = trainer.args
    settings = {}
    for field in dataclasses.fields(args):
        value = getattr(args, field.name, None)
        has_default = field.default is not dataclasses.MISSING and value == field.default
        if field.init and not has_default and not field.name.endswith("token") and value is not None:
            settings[field.name] = value
    info = {
        "format": 1,
        "trainer": type(trainer).__name__,
        "model": _model_name(trainer.model),
        "weighting": trainer._options.name,
        **facts,
        "settings": settings,
        "processes": trainer.accelerator.num_processes,
        "distributed_type": trainer.accelerator.distributed_type.value,
        "versions": versions(LIBRARIES),
    }
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / (FILE + ".tmp")
    temporary.write_text(json.dumps(info, indent=2, default=str) + "\n")
    os.replace(temporary, folder / FILE)


def _model_name(model: Any) -> str:
    config = getattr(model, "config", None)
    return getattr(config, "_name_or_path", "") or getattr(config, "model_type", type(model).__name__)
