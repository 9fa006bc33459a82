"""Figures of runs. Each function returns a matplotlib figure; the caller saves it."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from .runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What one value of the loss is, by `Run.kind`.
LOSS_UNITS = {"text": "nats per token", "pairs": "loss per pair", "rewards": "nats per pair"}
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
    """Training loss (without weights where the run has it) and validation loss; None if there is neither.

    Of preference pairs, the loss without weights is the DPO loss, whatever was optimised; validation is of what was.
    """
    coloured = _coloured(runs)
    keys = [key for key in ("loss", "eval_loss") if any(run.series(key)[0] for run in runs)]
    if not keys:
        return None
    figure, axes = _panels(len(keys))
    for axis, key in zip(axes, keys, strict=True):
        of_pairs = key == "loss" and all(run.series("loss/unweighted")[0] and run.kind == "pairs" for run in runs)
        training = "training: DPO loss, unweighted" if of_pairs else "training loss, unweighted"
        axis.set_title(training if key == "loss" else "validation loss")
        axis.set_ylabel(_loss_unit(runs))
        for run, colour in coloured:
            shown = "loss/unweighted" if key == "loss" and run.series("loss/unweighted")[0] else key
            axis.plot(*run.series(shown), color=colour, label=run.name)
        axis.legend(frameon=False)
    return figure


def weight_figure(runs: list[Run]) -> "Figure | None":
    """Effective sample size, and mean, smallest and largest weight; None if no run has weights."""
    coloured = [(run, colour) for run, colour in _coloured(runs) if run.series("weights/ess")[0]]
    if not coloured:
        return None
    figure, (left, right) = _panels(2)
    left.set_title("effective sample size of the compared examples")
    left.set_ylabel("share of examples")
    left.set_ylim(0, 1.05)
    right.set_title("weight: mean, smallest and largest")
    for run, colour in coloured:
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
    axes[0].set_ylabel(_loss_unit(runs))
    return figure


def implicit_reward_figure(runs: list[Run]) -> "Figure | None":
    """Implicit rewards of both answers, and how often the chosen one's is larger; None without preference runs."""
    coloured = [(run, colour) for run, colour in _coloured(runs) if run.kind == "pairs"]
    if not coloured:
        return None
    figure, (left, right) = _panels(2)
    left.set_title("implicit reward: chosen (line), rejected (dashes)")
    left.set_ylabel("beta x (log-prob - reference's)")
    right.set_title("share of pairs ordered as labelled")
    for run, colour in coloured:
        _plot_answers(left, run, colour, "rewards/chosen", "rewards/rejected")
        right.plot(*run.series("rewards/accuracies"), color=colour, label=run.name)
        if run.series("eval_rewards/accuracies")[0]:
            label = f"{run.name}, validation"
            right.plot(*run.series("eval_rewards/accuracies"), color=colour, linestyle=":", marker=".", label=label)
    right.axhline(0.5, color=COLOURS[5], linewidth=0.8)
    right.set_ylim(0, 1.05)
    for axis in (left, right):
        axis.legend(frameon=False, fontsize=8)
    return figure


def drift_figure(runs: list[Run]) -> "Figure | None":
    """How far the answers' log-probabilities moved from the reference's, and the policy's margin; None without it."""
    coloured = [(run, colour) for run, colour in _coloured(runs) if run.kind == "pairs"]
    if not any(run.series("logps/chosen_drift")[0] for run, _ in coloured):
        return None
    figure, (left, right) = _panels(2)
    left.set_title("drift of log-probs: chosen (line), rejected (dashes)")
    left.set_ylabel("nats, policy minus reference")
    left.axhline(0.0, color=COLOURS[5], linewidth=0.8)
    right.set_title("margin of implicit rewards")
    for run, colour in coloured:
        if run.series("logps/chosen_drift")[0]:  # TRL's own runs do not log it
            _plot_answers(left, run, colour, "logps/chosen_drift", "logps/rejected_drift")
        right.plot(*run.series("rewards/margins"), color=colour, label=run.name)
    for axis in (left, right):
        axis.legend(frameon=False, fontsize=8)
    return figure


def margin_figure(runs: list[Run]) -> "Figure | None":
    """Mean reward margin of the pairs that were trained on, and its agreement with the labels; None without it."""
    coloured = [(run, colour) for run, colour in _coloured(runs) if run.series("margins/mean")[0]]
    if not coloured:
        return None
    figure, (left, right) = _panels(2)
    left.set_title("mean reward margin, as logits")
    right.set_title("share of pairs whose margin agrees with the label")
    right.set_ylim(0, 1.05)
    for run, colour in coloured:
        label = f"{run.name} (temperature {run.last('margins/temperature'):.3g})"
        left.plot(*run.series("margins/mean"), color=colour, label=label)
        right.plot(*run.series("margins/agreement"), color=colour, label=run.name)
    for axis in (left, right):
        axis.legend(frameon=False, fontsize=8)
    return figure


def beta_figure(runs: list[Run]) -> "Figure | None":
    """beta-DPO's beta, and mean and spread of the policy's margins that move it; None without such a run."""
    coloured = [(run, colour) for run, colour in _coloured(runs) if run.series("beta_dpo/beta")[0]]
    if not coloured:
        return None
    figure, (left, right) = _panels(2)
    left.set_title("beta of the micro-batches")
    right.set_title("margins: moving mean and standard deviation")
    right.set_ylabel("nats")
    for run, colour in coloured:
        label = f"{run.name} ({run.last('beta_dpo/kept'):.0%} of the pairs kept)"
        left.plot(*run.series("beta_dpo/beta"), color=colour, label=label)
        steps, means = run.series("beta_dpo/gap_mean")
        spreads = run.series("beta_dpo/gap_std")[1]
        low, high = ([m + sign * s for m, s in zip(means, spreads, strict=True)] for sign in (-1, 1))
        right.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
        right.plot(steps, means, color=colour, label=run.name)
    for axis in (left, right):
        axis.legend(frameon=False, fontsize=8)
    return figure


def reward_model_figure(runs: list[Run]) -> "Figure | None":
    """Accuracy and mean margin of reward models over their training; None without such a run."""
    coloured = [(run, colour) for run, colour in _coloured(runs) if run.kind == "rewards"]
    if not coloured:
        return None
    figure, axes = _panels(2)
    titles = {"accuracy": "share of pairs ordered as labelled", "margin": "mean margin"}
    for axis, (key, title) in zip(axes, titles.items(), strict=True):
        axis.set_title(title)
        for run, colour in coloured:
            axis.plot(*run.series(key), color=colour, label=run.name)
            if run.series(f"eval_{key}")[0]:
                label = f"{run.name}, validation"
                axis.plot(*run.series(f"eval_{key}"), color=colour, linestyle=":", marker=".", label=label)
        axis.legend(frameon=False, fontsize=8)
    axes[0].set_ylim(0, 1.05)
    return figure


def _loss_unit(runs: list[Run]) -> str:
    units = {LOSS_UNITS[run.kind] for run in runs}
    return units.pop() if len(units) == 1 else "loss"


def _plot_answers(axis: "Axes", run: Run, colour: str, chosen: str, rejected: str) -> None:
    axis.plot(*run.series(chosen), color=colour, label=run.name)
    axis.plot(*run.series(rejected), color=colour, linestyle="--")


def _plot_groups(axis: "Axes", runs: list[Run], names: list[str], series: Callable) -> None:
    styles = ("-", "--", ":", "-.")
    for i, run in enumerate(runs):
        for j, name in enumerate(names):
            label = name if len(runs) == 1 else f"{name}, {run.name}"
            axis.plot(*series(run, name), color=COLOURS[j % len(COLOURS)], linestyle=styles[i % 4], label=label)
    axis.legend(frameon=False, fontsize=8)


def _coloured(runs: list[Run]) -> list[tuple[Run, str]]:
    """Give each run its colour, the same in every figure, also where not all runs are drawn."""
    return [(run, COLOURS[i % len(COLOURS)]) for i, run in enumerate(runs)]
