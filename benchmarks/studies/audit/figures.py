"""The study's pictures."""

import statistics
from pathlib import Path

from matplotlib.figure import Figure

from results import Run, best_epoch

COLOURS = {
    "full": "tab:blue",
    "lora": "tab:orange",
    "lora_rank_2": "tab:brown",
    "lora_dropout": "tab:red",
    "full_weight_decay": "tab:green",
    "full_duplicated": "tab:purple",
}
PANELS = (
    ("auc", "AUC of FLoRA"),
    ("greedy", "suffixes written greedily, share"),
    ("held_out_loss", "held-out loss"),
)


def draw_epochs(found: dict[str, dict[str, list[Run]]], path: Path) -> None:
    """Draw leakage and utility by epoch: means over seeds, and the range as a band."""
    figure = Figure(figsize=(11, 3.4 * len(found)), layout="constrained")
    for row, (data, arms) in zip(figure.subplots(len(found), 3, squeeze=False), found.items(), strict=True):
        for axes, (name, label) in zip(row, PANELS, strict=True):
            for arm in ("full", "lora"):
                _line(axes, arms.get(arm, []), name, COLOURS[arm], arm)
            axes.set(xlabel="epoch", ylabel=label, title=data)
        row[0].axhline(0.5, color="0.6", linewidth=0.8)
        row[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def _line(axes, runs: list[Run], name: str, colour: str, label: str) -> None:
    points = list(zip(*(run["epochs"] for run in runs), strict=True))
    epochs = [of[0]["epoch"] for of in points]
    values = [[point[name] for point in of] for of in points]
    axes.plot(epochs, [statistics.fmean(of) for of in values], marker=".", color=colour, label=label)
    axes.fill_between(epochs, [min(of) for of in values], [max(of) for of in values], color=colour, alpha=0.2)


def draw_defences(arms: dict[str, list[Run]], path: Path) -> None:
    """Draw each run's path over its epochs: what it knows of held-out texts, and what it gives away."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for arm, runs in arms.items():
        for number, run in enumerate(runs):
            losses, aucs = ([point[name] for point in run["epochs"]] for name in ("held_out_loss", "auc"))
            axes.plot(losses, aucs, color=COLOURS[arm], linewidth=0.8, alpha=0.6, label=None if number else arm)
            best = best_epoch(run)
            axes.plot(best["held_out_loss"], best["auc"], marker="o", color=COLOURS[arm])
    axes.set(
        xlabel="held-out loss", ylabel="AUC of FLoRA", title="secrets: a line a run over six epochs, a dot the best"
    )
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def draw_long(found: dict[str, list[dict]], path: Path) -> None:
    """Draw the share of suffixes that is written out, by epoch: members as lines, held-out texts dashed."""
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for (data, runs), colour in zip(found.items(), ("tab:blue", "tab:orange"), strict=False):
        _line(axes, runs, "greedy", colour, data)
        for run in runs:
            points = [(point["epoch"], point["greedy_held_out"]) for point in run["epochs"]]
            axes.plot(*zip(*points, strict=True), color=colour, linestyle="--", linewidth=0.8)
    axes.axhline(0.5, color="0.6", linewidth=0.8)
    axes.set(xlabel="epoch", ylabel="share of suffixes written greedily")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
