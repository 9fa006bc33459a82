"""The files that a selection leaves: scores of all rows, figures, and a page."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset

from ..scoring.work import write_json
from .selection import write_selection_report

SCORES, FIGURES, PAGE = "scores.parquet", "selection.json", "report.html"
FILTER = "_data_filter"  # a run's own selection, with rows of its data; transformers pushes no folder of such a name


def write_selection_files(report: dict[str, Any], scores: Dataset, folder: Path, **facts: Any) -> Path | None:
    """Write scores, page and figures of a selection, each whole or not at all; the figures last.

    Those of an earlier selection go first, so that a kill never leaves them beside other scores.

    Args:
        report: of the selection.
        scores: of the selection, one row an input row.
        folder: where the files go.
        facts: further entries of the figures.

    Returns:
        The page, or None where matplotlib is missing, which is said.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FIGURES).unlink(missing_ok=True)
    replace(folder / SCORES, lambda path: scores.to_parquet(str(path)))
    page = None
    try:
        page = write_selection_report(report, scores, folder / PAGE)
    except ImportError as error:
        print(f"No report page was written: {error}")
    write_json(folder / FIGURES, {**facts, **report})
    return page


def read_selection(folder: str | Path) -> tuple[dict[str, Any], Dataset] | None:
    """Return the figures and the scores of `gradkit select` in a folder, or None."""
    folder = Path(folder)
    if not (folder / FIGURES).is_file() or not (folder / SCORES).is_file():
        return None
    return json.loads((folder / FIGURES).read_text()), Dataset.from_parquet(str(folder / SCORES))


def read_filter(folder: str | Path) -> dict[str, Any] | None:
    """Return the figures of the selection that `data_filter` made in a run's folder, or None."""
    path = Path(folder) / FILTER / FIGURES
    return json.loads(path.read_text()) if path.is_file() else None


def replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file such that it is never seen half written: under another name first."""
    temporary = path.with_name(f"{path.name}.tmp")
    write(temporary)
    os.replace(temporary, path)
