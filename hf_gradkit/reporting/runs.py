"""Reading a finished or running run back from its folder.

The log format is the Trainer's own: `log_history` in `trainer_state.json`, with the keys that
`reporting/example_metrics.py` lists, and `gradkit_run.json` beside it. Runs of TRL or transformers without ours are
read as well; they have fewer keys.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .run_info import FILE as RUN_INFO

STATE = "trainer_state.json"
AUDIT = "_audit"  # of `gradkit audit`, in a model's folder


@dataclass(frozen=True)
class Run:
    """One run's logs.

    Attributes:
        name: the folder's name.
        folder: where it was read.
        history: the log entries, in order.
        info: `gradkit_run.json`, empty for a run without ours.
    """

    name: str
    folder: Path
    history: list[dict[str, Any]]
    info: dict[str, Any]

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Return the steps and the values at which a figure was logged."""
        points = [(entry["step"], entry[key]) for entry in self.history if key in entry]
        return [step for step, _ in points], [value for _, value in points]

    def last(self, key: str) -> float | None:
        """Return the last value of a figure, or None."""
        return next((entry[key] for entry in reversed(self.history) if key in entry), None)

    def groups(self) -> list[str]:
        """Return the names of the groups that were logged."""
        prefix = "group_loss/"
        return sorted({key[len(prefix) :] for entry in self.history for key in entry if key.startswith(prefix)})

    @property
    def kind(self) -> str:
        """What the run trained on, from the keys of its logs: "pairs", "rewards" or "text"."""
        keys = {key for entry in self.history for key in entry}
        if "rewards/margins" in keys:  # of DPOTrainer, TRL's and ours
            return "pairs"
        return "rewards" if {"accuracy", "margin"} <= keys else "text"  # the former: of RewardTrainer

    def steps_to(self, key: str, value: float) -> int | None:
        """Return the first step at which a figure was at or below `value`, or None."""
        return next((step for step, seen in zip(*self.series(key), strict=True) if seen <= value), None)


def is_run(folder: str | Path) -> bool:
    """Return whether a folder holds the logs of a run, or a model that was audited."""
    return _state_of(Path(folder)) is not None or (Path(folder) / AUDIT).is_dir()


def read_run(folder: str | Path) -> Run:
    """Read a run from its output folder, or from its newest checkpoint if it has not ended.

    A model's folder without logs is read where it was audited; it has no history.

    Raises:
        FileNotFoundError: if the folder holds no run; the message says what was looked for.
        ValueError: if a log is not readable.
    """
    folder = Path(folder)
    path = _state_of(folder)
    if path is None and not is_run(folder):
        raise FileNotFoundError(
            f"{str(folder)!r} holds no run: there is neither {STATE} nor checkpoint-*/{STATE} in it. Give the "
            "`output_dir` of a training run, of `gradkit select` or `gradkit score`, or an audited model."
        )
    info = folder / RUN_INFO
    try:
        history = [] if path is None else json.loads(path.read_text())["log_history"]
        details = json.loads(info.read_text()) if info.is_file() else {}
    except (json.JSONDecodeError, KeyError) as error:
        raise ValueError(f"The log of {str(folder)!r} is not readable ({type(error).__name__}: {error}).") from error
    return Run(folder.resolve().name, folder, history, details)


def _state_of(folder: Path) -> Path | None:
    candidates = [folder / STATE, *sorted(folder.glob(f"checkpoint-*/{STATE}"), key=_step_of, reverse=True)]
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _step_of(path: Path) -> int:
    number = path.parent.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1
