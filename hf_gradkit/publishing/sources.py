"""Where a model and its data come from, as far as the folders on this machine say: the start of a truthful page."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..reporting.run_info import FILE as RUN_INFO

# `owner/name`, or one of the old names without an owner; what huggingface_hub accepts as well.
HUB_NAME = re.compile(r"^[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9_][\w.-]{0,95})?$")
FILES = (".json", ".jsonl", ".gz", ".parquet", ".csv", ".txt", ".arrow", ".py")
LONGEST_CHAIN = 10  # of local models that were trained from each other


@dataclass(frozen=True)
class BaseModel:
    """What a model was trained from.

    Attributes:
        hub: its name on the Hub, or None where it was never there, as far as is known.
        steps: names of the local models between that one and this, the nearest last.
        given: the name that the training was given; "" for a model that was handed over without one.
        revision: commit on the Hub that was trained from, where it was recorded.
    """

    hub: str | None
    steps: tuple[str, ...] = ()
    given: str = ""
    revision: str | None = None

    def describe(self) -> str:
        """Return what it is, as Markdown, for the middle of a sentence."""
        start = f"[{self.hub}](https://huggingface.co/{self.hub})" if self.hub else None
        if self.steps:
            locals_ = ", then ".join(f"`{name}`" for name in self.steps)
            known = f", fine-tuned from {start}" if start else ", whose own origin was not recorded"
            return f"a local model ({locals_}){known}"
        return start or "a model that the training was handed without a name"


def is_hub_name(name: Any) -> bool:
    """Return whether a name can be that of a repository of the Hub, and no file or folder here has it."""
    if not isinstance(name, str) or not HUB_NAME.match(name) or name.endswith(FILES):
        return False
    return not Path(name).exists()


def base_model(
    folder: Path, most: int = LONGEST_CHAIN, info: dict[str, Any] | None = None, named: str | None = None
) -> BaseModel:
    """Return what the model in a folder was trained from, following local models to their own origin.

    Args:
        folder: of the model.
        most: local models that are followed.
        info: what a running trainer says of the run, instead of what is in the folder.
        named: what the user says it was trained from.
    """
    if named is not None:
        name, local, revision = named, None, None
    else:
        name, local, revision = _recorded(info) if info is not None else _trained_from(folder)
    if not name:
        return BaseModel(None)
    path = Path(name).expanduser()
    if local is None:  # not recorded by us: judge by the name
        local = path.is_dir() or not is_hub_name(name) or "/" not in name
    if not local:
        return BaseModel(name, (), name, revision)
    known = path.is_dir() and path.resolve() != folder.resolve() and most > 0
    below = base_model(path, most - 1) if known else BaseModel(None)
    return BaseModel(below.hub, (*below.steps, path.name), name, below.revision)


def _trained_from(folder: Path) -> tuple[str, bool | None, str | None]:
    """Return the name of what one folder's model was trained from, whether that was a folder, and its commit."""
    info = read_run_info(folder)
    if "base_model" in info:
        return _recorded(info)
    adapter = read_json(folder / "adapter_config.json")
    if adapter.get("base_model_name_or_path"):
        return adapter["base_model_name_or_path"], None, adapter.get("revision")
    named = card_metadata(folder).get("base_model")
    named = named[0] if isinstance(named, list) and named else named
    return (named, None, None) if isinstance(named, str) else ("", None, None)


def _recorded(info: dict[str, Any]) -> tuple[str, bool | None, str | None]:
    return info["base_model"], info.get("base_model_is_local"), info.get("model_revision")


def made_by_us(name: str) -> tuple[str, str] | None:
    """Return what a local data file is, in words, and its source, where one of our commands made it."""
    words = {
        "selection.json": "{kept} of {rows} rows of {source}, selected by {by}",
        "scores.json": "{rows} rows of {source}, scored: {by}",
    }
    for file, said in words.items():
        figures = read_json(Path(name).expanduser().parent / file)
        if figures.get("source"):
            source = figures["source"]
            linked = f"[{source}](https://huggingface.co/datasets/{source})"
            shown = linked if is_hub_name(source) else f"`{Path(source).name}`"
            return said.format(**{**figures, "source": shown}), source
    return None


def read_run_info(folder: Path) -> dict[str, Any]:
    """Return what `gradkit_run.json` says of a run; of a checkpoint, its run's. Empty where there is none."""
    of_run = folder.parent if folder.name.startswith("checkpoint-") else folder
    return read_json(folder / RUN_INFO) or read_json(of_run / RUN_INFO)


def card_metadata(folder: Path) -> dict[str, Any]:
    """Return the metadata of the page that is in a folder; empty where there is none that can be read."""
    from huggingface_hub import metadata_load

    try:
        return metadata_load(folder / "README.md") or {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def read_json(path: Path) -> dict[str, Any]:
    """Return the mapping in a JSON file; an empty one where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
