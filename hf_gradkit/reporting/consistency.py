"""The picture of worker consistency: dispersions and direction over training, beside what a healthy run has."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .figures import _coloured, _panels
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
    path = Path(folder) / FILE
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line]


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
