"""The picture of worker consistency: dispersions and direction over training, beside what a healthy run has."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .figures import _coloured, _panels
from .json_lines import read_json_lines
from .runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE = "worker_consistency.jsonl"
PANELS = {
    "loss_dispersion": "dispersion of the workers' losses",
    "grad_norm_dispersion": "dispersion of their gradients' norms",
    "direction": "cosine of their gradients",
}


def read_consistency(folder: str | Path) -> list[dict[str, Any]]:
    """Return the lines that WorkerConsistencyCallback wrote, one a monitored step; none if there is no file."""
    return read_json_lines(Path(folder) / FILE)


def rows_between_workers(run: Run) -> dict[str, float]:
    """Return how many rows of one epoch several workers saw, "repeated", and nobody, "missing", where it was found.

    The monitor counts from an epoch's start, so the epoch with the most counts. Logs hold means of several steps, so
    they are asked only where the monitor's own file is not there.
    """
    entries = read_consistency(run.folder) or run.history
    found = {name: [entry.get(f"consistency/{name}", 0.0) for entry in entries] for name in ("repeated", "missing")}
    return {name: max(values) for name, values in found.items() if any(values)}


def consistency_findings(runs: list[Run]) -> list[str]:
    """Return a sentence for each run in which workers shared rows, or left some out."""
    said = []
    for run in runs:
        found = rows_between_workers(run)
        parts = [f"{found['repeated']:.0f} rows were seen by several workers"] if "repeated" in found else []
        parts += [f"{found['missing']:.0f} rows by none"] if "missing" in found else []
        said += [f"{run.name}: in one epoch {', and '.join(parts)}."] if parts else []
    return said


def consistency_figure(runs: list[Run]) -> "Figure | None":
    """What workers differ by (lines) and what they should (dashed); None if no run was watched.

    Marks on the last panel are steps at which rows were found that two workers had seen.
    """
    watched = [(run, colour, read_consistency(run.folder)) for run, colour in _coloured(runs)]
    watched = [(run, colour, lines) for run, colour, lines in watched if lines]
    if not watched:
        return None
    figure, axes = _panels(len(PANELS))
    for axis, (name, title) in zip(axes, PANELS.items(), strict=True):
        axis.set_title(f"{title}; healthy: dashed")
        for run, colour, lines in watched:
            for ending, style in (("", "-"), ("_expected", "--")):
                key = f"consistency/{name}{ending}"
                points = [(line["step"], line[key]) for line in lines if key in line]
                label = None if ending else run.name
                axis.plot(*zip(*points, strict=True), color=colour, linestyle=style, label=label) if points else None
        axis.legend(frameon=False, fontsize=8)
    for run, colour, lines in watched:
        found = [line["step"] for line in lines if line.get("consistency/repeated")]
        label = f"{run.name}: rows seen twice"
        axes[-1].plot(found, [0.0] * len(found), "x", color=colour, label=label) if found else None
    return figure
