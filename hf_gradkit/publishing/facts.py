"""What is known of a trained model, from its folder or from the trainer that has it in its hands."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..audit.summary import AuditSummary, find_audits
from ..reporting.runs import STATE, Run, read_run
from .methods import TASKS, Method, methods_of
from .sources import BaseModel, base_model, card_metadata, is_hub_name, made_by_us, read_json, read_run_info

ADAPTER, CONFIG = "adapter_config.json", "config.json"


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes:
        step: optimizer steps that the model has had.
        max_steps: that it was to have; 0 where it is not known.
        epoch: passes over the data, or None.
        best_step: the step whose weights were kept (`load_best_model_at_end`), or None for the last.
    """

    step: int = 0
    max_steps: int = 0
    epoch: float | None = None
    best_step: int | None = None

    @classmethod
    def of(cls, state: dict[str, Any], settings: dict[str, Any]) -> "Progress":
        """Read it from a trainer's state; its best step counts where the settings say that the best was loaded."""
        ended = state.get("global_step", 0) >= state.get("max_steps", 0)
        best = state.get("best_global_step") if settings.get("load_best_model_at_end") and ended else None
        return cls(state.get("global_step", 0), state.get("max_steps", 0), state.get("epoch"), best)

    @property
    def ended(self) -> bool:
        """Whether all steps were taken."""
        return self.step >= self.max_steps


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model.

    Attributes:
        folder: where it is.
        name: what it is called.
        repo: its repository on the Hub, or None where it is not known yet.
        revision: the branch it is pushed to, or None for the main one.
        run: its logs and `gradkit_run.json`; both are empty where there are none.
        progress: how far its training is.
        base: what it was trained from.
        config: `config.json`; empty for an adapter alone.
        adapter: `adapter_config.json`; empty for a full model.
        given: metadata that the user gave: license, language, tags, datasets.
        audit: what its privacy audit found, or None without one.
    """

    folder: Path
    name: str
    repo: str | None
    revision: str | None
    run: Run
    progress: Progress
    base: BaseModel
    config: dict[str, Any]
    adapter: dict[str, Any]
    given: dict[str, Any] = field(default_factory=dict)
    audit: AuditSummary | None = None

    @property
    def info(self) -> dict[str, Any]:
        """`gradkit_run.json`."""
        return self.run.info

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that differ from their defaults."""
        return self.info.get("settings", {})

    @cached_property
    def methods(self) -> list[Method]:
        """What it was trained by."""
        return methods_of(self.info)

    @property
    def trainer(self) -> str:
        """Which of the known trainers trained it, also as the parent of one of the user's own; "" if none is known."""
        return next((known for known in TASKS if self.info.get("trainer", "").endswith(known)), "")

    @property
    def architectures(self) -> list[str]:
        """Classes that the model's weights belong to."""
        return self.config.get("architectures") or []

    @property
    def is_classifier(self) -> bool:
        """Whether it gives scores, as reward models do, and not text."""
        task = self.adapter.get("task_type")
        return task == "SEQ_CLS" or any(name.endswith("ForSequenceClassification") for name in self.architectures)

    @property
    def writes_text(self) -> bool:
        """Whether it is a causal language model."""
        task = self.adapter.get("task_type")
        return task == "CAUSAL_LM" or any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in self.architectures)

    def data(self, role: str) -> list[dict[str, Any]]:
        """Return the data sets of a role, "train" or "eval": `name`, and what else is known of each."""
        named = [entry for entry in self.info.get("data") or [] if entry.get("role") == role]
        given = self.given.get("datasets") or []
        if role == "train":
            known = {entry["name"] for entry in named}
            named += [{"name": name, "role": role} for name in given if name not in known]
        return named

    def hub_data(self, role: str = "train") -> list[str]:
        """Return the names of those that are on the Hub."""
        names = []
        for of in self.data(role):
            made = made_by_us(of["name"]) if of.get("local") else None  # from data of the Hub, perhaps
            name = made[1] if made else of["name"]
            if is_hub_name(name) and (made or not of.get("local")):
                names.append(name)
        return list(dict.fromkeys(names))


def read_model(folder: Path, repo: str | None = None, revision: str | None = None, **given: Any) -> ModelFacts:
    """Return what a model's folder says of it.

    Args:
        folder: the output folder of a training, or one of its checkpoints.
        repo: where it goes on the Hub.
        revision: the branch there.
        given: metadata that the user gives.
    """
    info = read_run_info(folder)
    try:
        run = read_run(folder)
    except FileNotFoundError:
        run = Run(folder.resolve().name, folder, [], {})
    run = Run(run.name, folder, run.history, info)
    state = _state(folder)
    return ModelFacts(
        folder=folder,
        name=repo.rpartition("/")[2] if repo else folder.resolve().name,
        repo=repo,
        revision=revision,
        run=run,
        progress=Progress.of(state, info.get("settings", {})),
        base=base_model(folder),
        config=read_json(folder / CONFIG),
        adapter=read_json(folder / ADAPTER),
        given=_given(folder, given),
        audit=find_audits(folder),
    )


def _state(folder: Path) -> dict[str, Any]:
    """Return the trainer's state of the weights in a folder; of a run that goes on, its newest checkpoint."""
    states = sorted(folder.glob(f"checkpoint-*/{STATE}"), key=lambda path: path.stat().st_mtime)
    return read_json(folder / STATE) or (read_json(states[-1]) if states else {})


def _given(folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata that the user gave now or, for license and language, on an earlier page."""
    earlier = card_metadata(folder)
    kept = {key: earlier.get(key) for key in ("license", "license_name", "license_link", "language")}
    return {key: value for key, value in {**kept, **_set(given)}.items() if value}


def _set(given: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in given.items() if value}
