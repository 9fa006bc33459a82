"""One self-contained HTML page of one run, or several side by side, from saved logs alone."""

import base64
import html
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .audit import audit_figure
from .consistency import consistency_figure
from .entanglement import entanglement_figure
from .figures import (
    beta_figure,
    drift_figure,
    group_figure,
    implicit_reward_figure,
    loss_figure,
    margin_figure,
    require_matplotlib,
    reward_model_figure,
    weight_figure,
)
from .gradient_statistics import gradient_figure
from .runs import Run, read_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A section: title, what one sees, and the figure, which is None where the runs have nothing to show.
Section = tuple[str, str, Callable[[list[Run]], "Figure | None"]]
SECTIONS: list[Section] = [
    (
        "Losses",
        "Training loss without weights, so that runs can be compared, and validation loss. Where pairs were weighted "
        "or trained on one of hf_gradkit's objectives, the training loss shown is their plain DPO loss; validation is "
        "of what was optimised, without weights.",
        loss_figure,
    ),
    (
        "Weights",
        "How many of the compared examples the weights leave effective, and how far weights spread. Mean weight far "
        "from 1 changes the size of the steps.",
        weight_figure,
    ),
    ("Groups", "Loss and weight of each group of the group column, over all processes.", group_figure),
]
# Sections that are left out where the runs have nothing to show.
FURTHER_SECTIONS: list[Section] = [
    (
        "Implicit rewards",
        "What the policy has learned of the preferences: beta times the log-probability that it gives an answer over "
        "the reference's, and how often the chosen answer's is the larger one.",
        implicit_reward_figure,
    ),
    (
        "Drift of log-probabilities",
        "How likely the answers have become, compared with the reference. Where the chosen answers' line falls, the "
        "policy prefers them only because the rejected ones fall faster, and moves to answers that no pair contains.",
        drift_figure,
    ),
    (
        "Reward margins",
        "What MADPO weighs by: the margins of the reward model, divided by the fitted temperature. An agreement of "
        "nearly 1 is one of a model that has seen these pairs.",
        margin_figure,
    ),
    (
        "beta-DPO",
        "The beta that each micro-batch's margins set, and the moving mean and standard deviation that it follows.",
        beta_figure,
    ),
    (
        "Gradient entanglement",
        "Where the monitored pairs lie: the cosine of the chosen and the rejected answer's gradients, and how much "
        "longer the second is. In the upper region both answers become less likely, in the lower one more likely.",
        entanglement_figure,
    ),
    (
        "Gradients of examples",
        "How long the examples' gradients are, and how they differ. Where the noise scale lies far above the batch, "
        "larger batches still pay; far below it, they do not. Sources with a cosine below zero undo each other.",
        gradient_figure,
    ),
    (
        "Consistency of workers",
        "Whether data-parallel workers train on the same thing, which averaging hides. Judge each line by the dashed "
        "one: what a healthy run of this batch and noise has. Crosses: rows that two workers have both seen.",
        consistency_figure,
    ),
    (
        "Privacy audit",
        "How well an attacker tells the examples that were trained on from those that were held out: the strongest "
        "attack of `gradkit audit membership`, and the AUC over training where PrivacyAuditCallback watched it. The "
        "line of guessing is what should not be left.",
        audit_figure,
    ),
    (
        "Reward model",
        "How many pairs the reward model orders as they are labelled, and how far apart it puts their answers.",
        reward_model_figure,
    ),
]

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

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; } p { max-width: 48rem; }
table { border-collapse: collapse; } th, td { padding: .25rem .8rem .25rem 0; text-align: left; }
th { border-bottom: 1px solid #999; } td.n { font-variant-numeric: tabular-nums; } img { max-width: 100%; }
code { background: #f2f2f2; padding: 0 .2em; } .none { color: #888; }
"""


def write_report(folders: list[str | Path], output: str | Path | None = None) -> Path:
    """Write the page of one or several runs and return its path.

    Args:
        folders: output folders of the runs.
        output: where the page goes; `report.html` in the first folder by default.

    Raises:
        FileNotFoundError: if a folder holds no run.
        ImportError: if matplotlib is missing; the message says what to install.
    """
    require_matplotlib()
    runs = [read_run(folder) for folder in folders]
    path = Path(output) if output is not None else Path(folders[0]) / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(render(runs), encoding="utf-8")
    os.replace(temporary, path)
    return path


def render(runs: list[Run]) -> str:
    """Return the page as HTML with its figures inside; it loads nothing."""
    title = "hf_gradkit report: " + ", ".join(run.name for run in runs)
    parts = [_summary(runs), _settings(runs)]
    for section in (*SECTIONS, *FURTHER_SECTIONS):
        name, text, draw = section
        figure = draw(runs)
        if figure is None and section in FURTHER_SECTIONS:
            continue
        if figure is not None:
            image = f'<img alt="{html.escape(name)}" src="data:image/png;base64,{_png(figure)}">'
        else:
            image = '<p class="none">These runs logged nothing for this section.</p>'
        parts.append(f"<h2>{html.escape(name)}</h2><p>{html.escape(text)}</p>{image}")
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<link rel="icon" href="data:,"><style>{STYLE}</style></head>\n<body><h1>{html.escape(title)}</h1>\n{body}\n'
        "</body></html>\n"
    )


def _png(figure: "Figure") -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return base64.b64encode(buffer.getvalue()).decode()


def _table(headings: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings)
    lines = "".join(
        "<tr>" + "".join(f'<td class="n">{html.escape(cell)}</td>' for cell in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{lines}</table>"


def _summary(runs: list[Run]) -> str:
    shown = [(heading, key) for heading, key in SUMMARY if any(run.last(key) is not None for run in runs)]
    rows = []
    for run in runs:
        values = [run.last(key) for _, key in shown]
        rows.append([run.name, _method(run), *(_number(value) for value in values)])
    return _table(["run", "method", *(heading for heading, _ in shown)], rows)


def _method(run: Run) -> str:
    """Return the loss types of a preference run and the weighting, as far as they are known."""
    loss_types = run.info.get("loss_type") or []
    weighting = run.info.get("weighting", "")
    if weighting == "none" and loss_types:
        weighting = ""
    return ", ".join([*loss_types, *([weighting] if weighting else [])])


def _settings(runs: list[Run]) -> str:
    """Return the settings that differ between the runs, or all of a single run's."""
    settings = [{**run.info.get("settings", {}), **run.info.get("versions", {})} for run in runs]
    keys = sorted({key for one in settings for key in one})
    texts = {key: [str(one.get(key, "")) for one in settings] for key in keys}
    if len(runs) > 1:
        texts = {key: cells for key, cells in texts.items() if len(set(cells)) > 1}
    if not texts:
        return ""
    heading = "What differs in the settings" if len(runs) > 1 else "Settings that differ from the defaults"
    rows = [[key, *cells] for key, cells in texts.items()]
    table = _table(["setting", *(run.name for run in runs)], rows)
    return f"<details><summary>{heading}</summary>{table}</details>"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.4g}"
