"""One self-contained HTML page, and the same as Markdown, of one run or several, from saved files alone."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

from .blocks import Block, html_page, markdown
from .comparison import comparison_blocks, read_scored
from .figures import require_matplotlib
from .runs import Run, is_run, read_run
from .sections import section_blocks
from .selection import selection_block
from .selection_files import read_selection

# Columns of the summary: heading and key, of which the last value is shown; columns without any value are left out.
SUMMARY = [
    ("steps", "step"),
    ("training loss", "loss"),
    ("unweighted", "loss/unweighted"),
    ("validation loss", "eval_loss"),
    ("effective sample size", "weights/ess"),
    ("pairs ordered as labelled", "rewards/accuracies"),
    ("of validation pairs", "eval_rewards/accuracies"),
    ("drift of chosen", "logps/chosen_drift"),
    ("margin temperature", "margins/temperature"),
    ("accuracy", "accuracy"),
    ("validation accuracy", "eval_accuracy"),
]


def write_report(folders: list[str | Path], output: str | Path | None = None) -> Path:
    """Write the page of one or several runs, or of what other commands left, and return its path.

    Args:
        folders: output folders of runs, of `gradkit select`, of `gradkit score` (two or more on the same data are
            compared), or models that were audited.
        output: where it goes: `.html`, or `.md` for Markdown with its pictures in a folder beside it. By default both,
            `report.html` and `report.md` in the first folder (`comparison.*` where it is no run), and the page's path
            is returned.

    Raises:
        FileNotFoundError: if a folder holds nothing of these.
        ValueError: if a log is not readable, scores cannot be compared, or `output` has another ending.
        ImportError: if matplotlib is missing; the message says what to install.
    """
    require_matplotlib()
    paths = [Path(output)] if output is not None else _own_names(folders)
    for path in paths:
        if path.suffix not in WRITERS:
            raise ValueError(f"`output` is {str(path)!r}. Its ending says what is written: .html or .md.")
    title, blocks = report_blocks(folders)
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        WRITERS[path.suffix](title, blocks, path)
    return paths[0]


def _own_names(folders: list[str | Path]) -> list[Path]:
    """Return where a report goes: `report` beside a run's logs; that is `gradkit select`'s own page in its folder."""
    folder = Path(folders[0])
    stem = "report" if is_run(folder) else "comparison"
    return [folder / f"{stem}.html", folder / f"{stem}.md"]


def report_blocks(folders: list[str | Path]) -> tuple[str, list[Block]]:
    """Return the title and the blocks of a report; arguments and errors are those of `write_report`."""
    runs: list[Run] = []
    selections, scored = [], []
    names = []
    for folder in map(Path, folders):
        selection, scores = read_selection(folder), read_scored(folder)
        if selection is not None:
            selections.append(selection_block(folder.resolve().name, *selection))
        if scores is not None:
            scored.append(scores)
        if is_run(folder) or (selection is None and scores is None):
            runs.append(read_run(folder))
        names.append(folder.resolve().name)
    blocks = []
    if runs:
        blocks += [_summary(runs), *_settings(runs), *section_blocks(runs)]
    blocks += selections
    if scored:
        blocks += comparison_blocks(scored)
    return "hf_gradkit report: " + ", ".join(names), blocks


def _write_html(title: str, blocks: list[Block], path: Path) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(html_page(title, blocks), encoding="utf-8")
    os.replace(temporary, path)


def _write_markdown(title: str, blocks: list[Block], path: Path) -> None:
    """Write the text after its pictures, which stand in a folder of its name."""
    pictures = path.with_name(f"{path.stem}_figures")
    fresh = path.with_name(f"{path.stem}_figures.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()

    def save(name: str, figure: Any) -> str:
        file = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") + ".png"
        figure.savefig(fresh / file, dpi=110)
        return f"{pictures.name}/{file}"

    text = markdown(title, blocks, save)
    shutil.rmtree(pictures, ignore_errors=True)
    os.replace(fresh, pictures)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


WRITERS = {".html": _write_html, ".md": _write_markdown}


def _summary(runs: list[Run]) -> Block:
    shown = [(heading, key) for heading, key in SUMMARY if any(run.last(key) is not None for run in runs)]
    rows = []
    for run in runs:
        values = [run.last(key) for _, key in shown]
        rows.append((run.name, _method(run), *(_number(value) for value in values)))
    return Block("", (), ("run", "method", *(heading for heading, _ in shown)), tuple(rows))


def _method(run: Run) -> str:
    """Return the loss types of a preference run and the weighting, as far as they are known."""
    loss_types = run.info.get("loss_type") or []
    weighting = run.info.get("weighting", "")
    if weighting == "none" and loss_types:
        weighting = ""
    return ", ".join([*loss_types, *([weighting] if weighting else [])])


def _settings(runs: list[Run]) -> list[Block]:
    """Return the settings that differ between the runs, or all of a single run's."""
    settings = [{**run.info.get("settings", {}), **run.info.get("versions", {})} for run in runs]
    keys = sorted({key for one in settings for key in one})
    texts = {key: tuple(str(one.get(key, "")) for one in settings) for key in keys}
    if len(runs) > 1:
        texts = {key: cells for key, cells in texts.items() if len(set(cells)) > 1}
    if not texts:
        return []
    heading = "What differs in the settings" if len(runs) > 1 else "Settings that differ from the defaults"
    rows = tuple((key, *cells) for key, cells in texts.items())
    return [Block(heading, (), ("setting", *(run.name for run in runs)), rows, folded=True)]


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.4g}"
