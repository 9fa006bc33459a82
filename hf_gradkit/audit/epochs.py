"""The same audit for every checkpoint of a run: leakage over training, with the utility beside it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

KEPT = {"membership": ("attacks", "utility"), "extraction": ("members", "non_members")}


def checkpoints_of(folder: str | Path) -> list[Path]:
    """Return the checkpoints in a run's folder, in order of their steps.

    Raises:
        ValueError: if there are none.
    """
    folder = Path(folder).expanduser()
    found = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    if not found:
        raise ValueError(
            f"`checkpoints` is true, but {str(folder)!r} holds no checkpoint-*. Train with save_strategy 'epoch', or "
            "leave it out."
        )
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """Return the optimizer step of a checkpoint, from its name."""
    return int(checkpoint.name.rpartition("-")[2])


def audit_checkpoints(folder: str | Path, audit: Callable[[str], Any]) -> Iterator[dict[str, Any]]:
    """Yield, for each checkpoint of a run, its step, its epoch, and the audit's figures without the ROC.

    Args:
        folder: of the run.
        audit: audits one model's folder; scores of an unchanged reference are kept from one to the next.
    """
    for checkpoint in checkpoints_of(folder):
        figures = audit(str(checkpoint)).figures
        point = {name: figures[name] for name in KEPT[figures["audit"]]}
        if "attacks" in point:
            point["attacks"] = {
                name: {key: value for key, value in of.items() if key not in ("roc", "over")}
                for name, of in point["attacks"].items()
            }
        yield {"step": step_of(checkpoint), "epoch": _epoch_of(checkpoint), **point}


def _epoch_of(checkpoint: Path) -> float | None:
    state = checkpoint / "trainer_state.json"
    return json.loads(state.read_text()).get("epoch") if state.is_file() else None
