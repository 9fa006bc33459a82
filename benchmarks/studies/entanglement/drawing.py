"""The figures of the study."""

import statistics
from pathlib import Path

from matplotlib.figure import Figure
from records import MAIN, watched
from training import CHECKS, arms

from hf_gradkit.reporting.figures import COLOURS

WORDS = {"own_rises": "own step, predicted", "step_rises": "whole step, predicted", "observed_rises": "observed"}


def _mean(curves: list[list[float]]) -> list[float]:
    return [statistics.fmean(values) for values in zip(*curves, strict=True)]


def _plain(axis) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)


def draw_training(found: dict, path: Path) -> None:
    """Draw the drift of chosen (solid) and rejected answers, and for DPO the shares of chosen answers that rise."""
    figure = Figure(figsize=(10.4, 6.6), layout="constrained")
    for world, (left, right) in zip(MAIN, figure.subplots(2, 2), strict=True):
        for arm, colour in zip(arms(world), COLOURS, strict=False):
            curves = [run["curve"] for run in found["main", world, arm].values()]
            steps = [point["step"] for point in curves[0]]
            for side, style in (("chosen", "-"), ("rejected", ":")):
                values = _mean([[point[f"train_{side}"] for point in curve] for curve in curves])
                left.plot(steps, values, style, color=colour, label=arm if side == "chosen" else None)
        left.axhline(0, color="#4d4d4d", linewidth=0.8)
        left.set(title=f"{world}: log-probs of trained-on pairs, nats", xlabel="optimizer step")
        left.legend(frameon=False, fontsize=7)
        runs = list(found["main", world, "dpo"].values())
        steps = [line["step"] for line in runs[0]["watched"]]
        for (name, words), colour in zip(WORDS.items(), COLOURS, strict=False):
            values = _mean([[watched(line)[name] for line in run["watched"]] for run in runs])
            begin = 1 if name == "observed_rises" else 0  # the first step's learning rate is 0
            right.plot(steps[begin:], values[begin:], marker=".", color=colour, label=words)
        right.set(title=f"{world}: DPO, share of chosen answers that rise", xlabel="optimizer step", ylim=(0, 1.05))
        right.legend(frameon=False, fontsize=8)
        _plain(left)
        _plain(right)
    figure.savefig(path, dpi=110)


def draw_checks(table: dict, path: Path) -> None:
    """Draw the agreement of predicted and observed signs by learning rate, and what sharing does under DPO."""
    figure = Figure(figsize=(10.4, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for world, style in zip(MAIN, ("-", "--"), strict=True):
        for optimizer, colour in zip(("sgd", "adamw"), COLOURS, strict=False):
            settings = [setting for setting in CHECKS if setting.startswith(optimizer)]
            rates = [CHECKS[setting]["learning_rate"] for setting in settings]
            shares = [table["checks"][world][setting]["agreement"]["mean"] for setting in settings]
            left.plot(rates, shares, style, marker=".", color=colour, label=f"{world}, {optimizer}")
    left.set(title="signs as predicted", xscale="log", xlabel="learning rate", ylim=(0.4, 1.02))
    left.legend(frameon=False, fontsize=7, handlelength=4)
    conditions = list(table["shared"])
    for axis, name, title in (
        (middle, "cosine", "cosine, DPO"),
        (right, "train_chosen", "chosen, trained-on pairs, nats"),
    ):
        for arm, colour, shift in (("dpo", COLOURS[0], -0.1), ("balancing_pair", COLOURS[1], 0.1)):
            if name == "cosine" and arm != "dpo":
                continue
            for i, condition in enumerate(conditions):
                value = table["shared"][condition][arm][name]
                axis.plot([i + shift] * 2, [value["low"], value["high"]], color=colour)
                axis.plot(i + shift, value["mean"], "o", color=colour, label=arm if i == 0 else None)
        axis.set_xticks(range(len(conditions)), conditions)
        axis.axhline(0, color="#4d4d4d", linewidth=0.8)
        axis.set_title(title)
    right.legend(frameon=False, fontsize=8)
    for axis in (left, middle, right):
        _plain(axis)
    figure.savefig(path, dpi=110)
