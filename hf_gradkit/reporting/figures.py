"""Figures of runs. Each function returns a matplotlib figure; the caller saves it."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from .runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#3b6fb6", "#d1603d", "#3f9b6c", "#8a5fa8", "#b8892b", "#4d4d4d", "#c2588b", "#5aa5b8")


def require_matplotlib() -> None:
    """Raise `ImportError` with what to install if figures cannot be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'Figures need matplotlib, which is not installed: pip install "hf-gradkit[plots]".'
        ) from error


def _panels(number: int) -> tuple["Figure", list["Axes"]]:
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * number, 3.6), layout="constrained")
    axes = figure.subplots(1, number, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        axis.set_xlabel("optimizer step")
    return figure, list(axes)


def loss_figure(runs: list[Run]) -> "Figure | None":
    """Training loss (without weights where the run has it) and validation loss; None if there is neither."""
    keys = [key for key in ("loss", "eval_loss") if any(run.series(key)[0] for run in runs)]
    if not keys:
        return None
    figure, axes = _panels(len(keys))
    for axis, key in zip(axes, keys, strict=True):
        axis.set_title("training loss, unweighted" if key == "loss" else "validation loss")
        axis.set_ylabel("nats per token")
        for run, colour in zip(runs, _colours(runs), strict=True):
            shown = "loss/unweighted" if key == "loss" and run.series("loss/unweighted")[0] else key
            axis.plot(*run.series(shown), color=colour, label=run.name)
        axis.legend(frameon=False)
    return figure


def weight_figure(runs: list[Run]) -> "Figure | None":
    """Effective sample size, and mean, smallest and largest weight; None if no run has weights."""
    runs = [run for run in runs if run.series("weights/ess")[0]]
    if not runs:
        return None
    figure, (left, right) = _panels(2)
    left.set_title("effective sample size of the compared examples")
    left.set_ylabel("share of examples")
    left.set_ylim(0, 1.05)
    right.set_title("weight: mean, smallest and largest")
    for run, colour in zip(runs, _colours(runs), strict=True):
        left.plot(*run.series("weights/ess"), color=colour, label=run.name)
        steps, smallest = run.series("weights/min")
        right.fill_between(steps, smallest, run.series("weights/max")[1], color=colour, alpha=0.2, linewidth=0)
        right.plot(*run.series("weights/mean"), color=colour, label=run.name)
    for axis in (left, right):
        axis.legend(frameon=False)
    return figure


def group_figure(runs: list[Run]) -> "Figure | None":
    """Loss and weight of each group: one colour a group, one line style a run; None if no run has groups."""
    runs = [run for run in runs if run.groups()]
    if not runs:
        return None
    figure, axes = _panels(2)
    names = sorted({name for run in runs for name in run.groups()})
    for axis, prefix, title in zip(
        axes, ("group_loss/", "group_weight/"), ("loss of each group", "mean weight of each group"), strict=True
    ):
        axis.set_title(title)
        _plot_groups(axis, runs, names, lambda run, name, prefix=prefix: run.series(prefix + name))
    axes[0].set_ylabel("nats per token")
    return figure


def _plot_groups(axis: "Axes", runs: list[Run], names: list[str], series: Callable) -> None:
    styles = ("-", "--", ":", "-.")
    for i, run in enumerate(runs):
        for j, name in enumerate(names):
            label = name if len(runs) == 1 else f"{name}, {run.name}"
            axis.plot(*series(run, name), color=COLOURS[j % len(COLOURS)], linestyle=styles[i % 4], label=label)
    axis.legend(frameon=False, fontsize=8)


def _colours(runs: list[Run]) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(len(runs))]
