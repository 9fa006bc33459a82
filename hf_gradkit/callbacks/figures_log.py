"""Where a callback's figures go: a file of its own, the run's log history, and, given the trainer, its trackers."""

import json
import os
from pathlib import Path
from typing import Any

from ..reporting.json_lines import read_json_lines


class FiguresLog:
    """Figures of a callback, one line of JSON a monitored step.

    transformers hands callbacks neither the trainer nor the logs before they are sent out. With the trainer, figures
    are in the logs like any other; without, they are added to the log history afterwards, which trackers do not see.

    Args:
        name: of the file, `<output_dir>/<name>.jsonl`.
        trainer: the trainer, or None.
    """

    def __init__(self, name: str, trainer: Any = None):
        self._name, self._trainer = name, trainer
        self._pending: list[dict[str, float]] = []
        self.path: Path | None = None
        self.kept: list[dict[str, Any]] = []  # what a resumed run wrote before its checkpoint, on every rank

    def start(self, output_dir: str, step: int, writes: bool) -> None:
        """Begin a run at an optimizer step; lines of later steps, which a resumed run repeats, are dropped."""
        self._pending, self.kept = [], []
        path = Path(output_dir) / f"{self._name}.jsonl"
        if step and path.exists():
            self.kept = [line for line in read_json_lines(path) if line["step"] <= step]
        self.path = path if writes else None
        if writes and path.exists():
            temporary = path.with_suffix(".tmp")
            temporary.write_text("".join(json.dumps(line) + "\n" for line in self.kept))
            os.replace(temporary, path)
        if self._trainer is not None:
            taken = getattr(self._trainer.log, "figures_logs", None)
            if taken is None:
                taken = []
                self._trainer.log = _with_figures(self._trainer.log, taken)
            if self not in taken:
                if any(other._name == self._name for other in taken):
                    raise ValueError(
                        f"Two monitors of this trainer write {self._name}.jsonl and log the same figures. Leave one "
                        "of them out."
                    )
                taken.append(self)

    def add(self, step: int, figures: dict[str, float], details: dict[str, Any]) -> None:
        """Note the figures of a monitored step; `details` go to the file only."""
        self._pending.append(figures)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, **figures, **details}) + "\n")

    def flush(self) -> dict[str, float]:
        """Return the means of the figures since the last log, and forget them."""
        means = {
            key: sum(figures[key] for figures in self._pending if key in figures)
            / sum(key in figures for figures in self._pending)
            for key in {key for figures in self._pending for key in figures}
        }
        self._pending = []
        return dict(sorted(means.items()))

    def after_log(self, history: list[dict[str, Any]]) -> None:
        """Add what is pending to the last entry of the log history, if it is one of training."""
        if self._trainer is None and history and _of_training(history[-1]):
            history[-1].update(self.flush())


def _of_training(logs: dict[str, Any]) -> bool:
    """Whether logs are those of training steps, or of the run at its end, and not of an evaluation."""
    return "loss" in logs or "train_loss" in logs


def _with_figures(log: Any, figures_logs: list[FiguresLog]) -> Any:
    def logged(logs: dict[str, float], *positional: Any, **keywords: Any) -> None:
        if _of_training(logs):
            for figures in figures_logs:
                logs.update(figures.flush())
        log(logs, *positional, **keywords)

    logged.figures_logs = figures_logs
    return logged
