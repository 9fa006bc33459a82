"""The figures of the study."""

import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from arms import QUALITIES


def _mean_curve(of_seed: dict[int, dict], figure: str) -> list[float]:
    """Return a figure's mean over seeds at each checkpoint."""
    curves = [run["curve"] for run in of_seed.values()]
    return [statistics.fmean(points[figure] for points in at) for at in zip(*curves, strict=True)]


def draw_differences(table: dict, path: Path) -> None:
    """Draw each arm's difference to DPO in true reward, with its interval, for each quality."""
    figure, axes = plt.subplots(1, len(table), figsize=(10, 3.2), sharey=True, sharex=True)
    for axis, (quality, of_arm) in zip(axes, table.items(), strict=True):
        arms = [arm for arm in of_arm if arm != "dpo" and of_arm[arm]["true_difference"]]
        for i, arm in enumerate(arms):
            value = of_arm[arm]["true_difference"]
            axis.plot([value["low"], value["high"]], [i, i], color="C0")
            axis.plot(value["mean"], i, "o", color="C0")
        axis.axvline(0, color="grey", lw=0.6)
        axis.set(yticks=range(len(arms)), yticklabels=arms, title=quality, xlabel="true reward - DPO's")
        axis.set_xlim(-1.5, 1.5)  # what lies outside is in the tables
    axes[0].invert_yaxis()
    _save(figure, path)


def draw_distance(runs: dict, path: Path, log_probs: bool = False) -> None:
    """Draw true and proxy reward against KL from the reference, and log-probs of the chosen over steps if asked."""
    rows = 3 if log_probs else 2
    width = 10 if len(runs) > 1 else 4.5
    figure, axes = plt.subplots(rows, len(runs), figsize=(width, 2.9 * rows), squeeze=False)
    for column, (quality, of_arm) in enumerate(runs.items()):
        for i, (arm, of_seed) in enumerate(of_arm.items()):
            if not of_seed:
                continue
            kl, style = _mean_curve(of_seed, "kl"), {"marker": ".", "lw": 1, "color": f"C{i}", "label": arm}
            axes[0, column].plot(kl, _mean_curve(of_seed, "true"), **style)
            axes[1, column].plot(kl, _mean_curve(of_seed, "proxy"), **style)
            if log_probs:
                steps = [point["step"] for point in next(iter(of_seed.values()))["curve"]]
                axes[2, column].plot(steps, _mean_curve(of_seed, "train_chosen"), **style)
        axes[0, column].set(title=quality, ylabel="true reward", xlabel="KL from the reference, nats")
        axes[1, column].set(ylabel="proxy reward", xlabel="KL from the reference, nats")
        if log_probs:
            axes[2, column].set(ylabel="chosen log-prob - reference's", xlabel="step")
    axes[0, 0].legend(fontsize=6)
    _save(figure, path)


def draw_log_probs(runs: dict, path: Path) -> None:
    """Draw how the log-probs of chosen (solid) and rejected (dashed) training pairs move."""
    figure, axes = plt.subplots(1, len(QUALITIES), figsize=(10, 3.2))
    for axis, quality in zip(axes, QUALITIES, strict=True):
        for i, (arm, of_seed) in enumerate(runs[quality].items()):
            if not of_seed:
                continue
            steps = [point["step"] for point in next(iter(of_seed.values()))["curve"]]
            axis.plot(steps, _mean_curve(of_seed, "train_chosen"), color=f"C{i}", lw=1, label=arm)
            axis.plot(steps, _mean_curve(of_seed, "train_rejected"), "--", color=f"C{i}", lw=1)
        axis.set(title=quality, xlabel="step", ylabel="log-prob - reference's, nats")
    axes[0].legend(fontsize=6)
    _save(figure, path)


def draw_tuning(runs: list[dict], path: Path) -> None:
    """Draw where every setting of the tuning ended: true reward against KL from the reference."""
    figure, axes = plt.subplots(1, len(QUALITIES), figsize=(10, 3.2), sharey=True)
    names = list(dict.fromkeys(run["arm"] for run in runs))
    for axis, quality in zip(axes, QUALITIES, strict=True):
        for i, arm in enumerate(names):
            ends = [r["curve"][-1] for r in runs if r["arm"] == arm and r["quality"] == quality]
            axis.plot([e["kl"] for e in ends], [e["true"] for e in ends], ".", color=f"C{i}", ms=5, label=arm)
        axis.set(title=quality, xlabel="KL from the reference, nats", ylabel="true reward")
    axes[0].legend(fontsize=6)
    _save(figure, path)


def _save(figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)
