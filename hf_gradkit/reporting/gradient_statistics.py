"""The picture of gradient statistics: norms and noise over training, and the cosines of the data's sources."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .figures import _coloured, _panels
from .json_lines import read_json_lines
from .runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FILE = "gradient_statistics.jsonl"
COSINE = "gradients/cosine/"


def read_statistics(folder: str | Path) -> list[dict[str, Any]]:
    """Return the lines that GradientStatisticsCallback wrote, one a monitored step; none if there is no file."""
    return read_json_lines(Path(folder) / FILE)


def gradient_figure(runs: list[Run]) -> "Figure | None":
    """Norms of examples, noise scale beside the batch, and how sources pull; None if no run was watched.

    With several runs the cosines are those of the first that has groups.
    """
    watched = [(run, colour, read_statistics(run.folder)) for run, colour in _coloured(runs)]
    watched = [(run, colour, lines) for run, colour, lines in watched if lines]
    if not watched:
        return None
    grouped = [lines for _, _, lines in watched if any(key.startswith(COSINE) for key in lines[-1])]
    figure, axes = _panels(3 if grouped else 2)
    axes[0].set_title("norm of an example's gradient: median and largest")
    axes[0].set_yscale("log")
    axes[1].set_title("noise scale (line) and batch (dotted), in examples")
    axes[1].set_yscale("log")
    for run, colour, lines in watched:
        steps = [line["step"] for line in lines]
        axes[0].plot(steps, [line["gradients/norm_median"] for line in lines], color=colour, label=run.name)
        axes[0].plot(steps, [line["gradients/norm_max"] for line in lines], color=colour, alpha=0.4, linewidth=1)
        known = [line for line in lines if line.get("gradients/noise_scale", 0) > 0]
        noise = [line["gradients/noise_scale"] for line in known]
        axes[1].plot([line["step"] for line in known], noise, color=colour, label=run.name)
        axes[1].plot(steps, [line["gradients/batch"] for line in lines], color=colour, linestyle=":")
    for axis in axes[:2]:
        axis.legend(frameon=False, fontsize=8)
    if grouped:
        _draw_cosines(axes[2], grouped[0][-1])
    return figure


def _draw_cosines(axis: "Axes", line: dict[str, Any]) -> None:
    """Draw the matrix of cosines of a monitored step."""
    cosines = {tuple(key[len(COSINE) :].split("|", 1)): value for key, value in line.items() if key.startswith(COSINE)}
    names = sorted({name for pair in cosines for name in pair})
    table = [[cosines.get((a, b), cosines.get((b, a), float("nan"))) for b in names] for a in names]
    for i in range(len(names)):
        table[i][i] = 1.0
    axis.set_title("cosine of the sources' gradients")
    axis.grid(False)
    axis.set_xlabel("")
    axis.imshow(table, vmin=-1, vmax=1, cmap="RdBu")
    axis.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    for i, row in enumerate(table):
        for j, value in enumerate(row):
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8)
