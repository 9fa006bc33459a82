"""The picture of gradient entanglement: every monitored pair between the regions, and the shares over training."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .figures import COLOURS, _coloured, _panels
from .json_lines import read_json_lines
from .runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FILE = "entanglement.jsonl"
MOST_POINTS = 4000  # of one run
OUTCOMES = {"ideal": "as meant", "both_fall": "both fall", "both_rise": "both rise"}


def read_entanglement(folder: str | Path) -> list[dict[str, Any]]:
    """Return the lines that EntanglementCallback wrote, one a monitored step; none if there is no file."""
    return read_json_lines(Path(folder) / FILE)


def entanglement_figure(runs: list[Run]) -> "Figure | None":
    """Cosine against norm ratio of the pairs, with the regions, and the outcomes' shares; None without a monitor."""
    watched = [(run, colour, read_entanglement(run.folder)) for run, colour in _coloured(runs)]
    watched = [(run, colour, lines) for run, colour, lines in watched if lines]
    if not watched:
        return None
    figure, (left, right) = _panels(2)
    _draw_regions(left)
    for run, colour, lines in watched:
        points = [pair for line in lines for pair in line["pairs"]]
        points = points[:: max(1, len(points) // MOST_POINTS)]
        left.scatter(*zip(*points, strict=True), s=5, alpha=0.3, color=colour, linewidths=0, label=run.name)
        path = [(line["entanglement/cosine"], line["entanglement/norm_ratio"]) for line in lines if _whole(line)]
        left.plot(*zip(*path, strict=True), color=colour, linewidth=1.2)
        left.plot(*path[-1], marker="o", color=colour, markeredgecolor="white")
    right.set_title("share of pairs")
    right.set_ylim(0, 1.05)
    for i, (run, colour, lines) in enumerate(watched):
        for (name, words), style in zip(OUTCOMES.items(), ("-", "--", ":"), strict=True):
            steps = [line["step"] for line in lines]
            shares = [line[f"entanglement/{name}"] for line in lines]
            label = words if len(watched) == 1 else f"{run.name}: {words}"
            right.plot(steps, shares, linestyle=style, color=colour if len(watched) > 1 else COLOURS[i], label=label)
    for axis in (left, right):
        axis.legend(frameon=False, fontsize=8)
    return figure


def _whole(line: dict[str, Any]) -> bool:
    return "entanglement/cosine" in line and "entanglement/norm_ratio" in line


def _draw_regions(axis: "Axes") -> None:
    """Draw where a pair's own step does what: ideal iff cos < ratio < 1 / cos."""
    axis.set_title("pairs, and their mean over training")
    axis.set_xlabel("cosine of the chosen and the rejected answer's gradients")
    axis.set_ylabel("norm ratio, rejected / chosen")
    axis.set_yscale("log")
    axis.set_xlim(-1, 1)
    axis.set_ylim(0.1, 10)
    cosines = [0.1 + 0.01 * i for i in range(91)]
    axis.fill_between(cosines, [1 / c for c in cosines], 10, color="#d1603d", alpha=0.12, linewidth=0)
    axis.fill_between(cosines, 0.1, cosines, color="#b8892b", alpha=0.12, linewidth=0)
    for x, y, words in ((0.6, 6.5, "both fall"), (0.6, 0.14, "both rise"), (-0.6, 1.0, "ideal")):
        axis.text(x, y, words, ha="center", va="center", fontsize=8, color="#555")
