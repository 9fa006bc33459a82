"""What `gradkit score` leaves in its output folder, never half written."""

import json
import os
from pathlib import Path
from typing import Any

from datasets import Dataset

from ..scoring.work import write_json

DATA, FIGURES, WORK = "scored.parquet", "scores.json", "scoring"


def check_output(output: Path, key: str, model: str, overwrite: bool) -> None:
    """Refuse to replace other scores unasked, before anything is scored.

    Raises:
        ValueError: if the folder holds scores of another key, and `overwrite` is False.
    """
    if not (output / FIGURES).exists() or overwrite:
        return
    found = json.loads((output / FIGURES).read_text())
    if found["key"] != key:
        raise ValueError(
            f"`output_dir` {str(output)!r} holds the scores of {found['model']!r}, and now {model!r} would score: "
            "another model, other data or other settings. Choose another folder, or replace them with "
            "--overwrite true."
        )


def write_scores(dataset: Dataset, figures: dict[str, Any], output: Path) -> Path:
    """Write the scored data and its figures, and return where the data is."""
    path = output / DATA
    temporary = path.with_suffix(".parquet.tmp")
    dataset.to_parquet(str(temporary))
    os.replace(temporary, path)
    write_json(output / FIGURES, figures)
    return path


def note_origin(output: Path, source: str, split: str, command: str) -> None:
    """Note beside the figures what was scored, and by which command, for the page of the data set."""
    figures = json.loads((output / FIGURES).read_text())
    write_json(output / FIGURES, {**figures, "source": source, "split": split, "command": command})
