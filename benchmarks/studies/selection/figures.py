"""Figures of experiment 1, and what its arms kept and when they were at their best; reads the runs' results.

python figures.py --output OUT/known_truth --folder ../../../docs/results/selection
"""

import argparse
import statistics
from pathlib import Path

from arms import ARMS, SEEDS, names, use
from known_truth import CHECKPOINTS, FRACTIONS, STEPS
from matplotlib.figure import Figure

use("reweighting")
from common import load_all, mean_and_interval, paired, write_json  # noqa: E402

COLOURS = dict(zip(ARMS, ("0.5", "tab:blue", "tab:cyan", "tab:orange", "tab:green", "tab:red"), strict=True))


def true_reward(of_seed: dict[int, dict], step: int) -> dict[int, float]:
    """Return each seed's true reward at a checkpoint."""
    return {seed: next(p["true"] for p in r["curve"] if p["step"] == step) for seed, r in of_seed.items()}


def details(of_seed: dict[int, dict]) -> dict:
    """Return of an arm its curve, its best checkpoint in each seed, and what it kept, as means over seeds."""
    curves = {step: true_reward(of_seed, step) for step in CHECKPOINTS}
    kept = {"kept": next(iter(of_seed.values()))["kept"]}
    for name, pick in {
        "true_margin": lambda r: r["mean_true_margin"],
        "margin_and_length": lambda r: r["margin_and_length"]["spearman"],
        "entropy": lambda r: r["entropy"]["kept"],
        "entropy_of_random": lambda r: r["entropy"]["random"],
    }.items():
        values = [pick(r) for r in of_seed.values() if name.partition("_of_")[0] in ("true_margin", *r)]
        if values and None not in values:
            kept[name] = mean_and_interval(values)
    return {
        "curve": {step: mean_and_interval(list(values.values())) for step, values in curves.items()},
        "best_step": {seed: max(CHECKPOINTS, key=lambda step: curves[step][seed]) for seed in of_seed},
        "best_to_last": mean_and_interval(
            [max(curves[step][seed] for step in CHECKPOINTS) - curves[STEPS][seed] for seed in of_seed]
        ),
        "figures_at_the_end": {
            name: mean_and_interval([r["curve"][-1][name] for r in of_seed.values()])
            for name in ("proxy", "kl", "held_out_accuracy", "words", "repeated")
        },
        **kept,
    }


def draw_differences(results: dict[str, dict[int, dict]], path: Path) -> None:
    """Draw each arm's last true reward minus that of all pairs, with intervals."""
    full = true_reward(results["full"], STEPS)
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for i, arm in enumerate(ARMS):
        for j, fraction in enumerate(FRACTIONS):
            difference = paired(true_reward(results[f"{arm}-{fraction}"], STEPS), full)
            place, mean = j + 0.12 * (i - 2.5), difference["mean"]
            error = [[mean - difference["low"]], [difference["high"] - mean]]
            label = arm if j == 0 else None
            axes.errorbar(place, mean, yerr=error, fmt="o", color=COLOURS[arm], capsize=2, label=label)
    axes.axhline(0, color="0.3", linewidth=0.8)
    axes.set_xticks(range(len(FRACTIONS)), [f"{fraction:.0%} of the pairs" for fraction in FRACTIONS])
    axes.set_ylabel("true reward minus that of all pairs")
    axes.legend(ncols=2, fontsize=8)
    figure.savefig(path, dpi=110)


def draw_curves(results: dict[str, dict[int, dict]], path: Path) -> None:
    """Draw the mean true reward against steps, a panel a fraction."""
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    for axes, fraction in zip(figure.subplots(1, len(FRACTIONS), sharey=True), FRACTIONS, strict=True):
        for arm in ("full", *ARMS):
            of_seed = results[arm if arm == "full" else f"{arm}-{fraction}"]
            means = [statistics.fmean(true_reward(of_seed, step).values()) for step in CHECKPOINTS]
            style = {"color": "black", "linewidth": 2} if arm == "full" else {"color": COLOURS[arm]}
            axes.plot(CHECKPOINTS, means, marker=".", label=arm, **style)
        axes.set_title(f"{fraction:.0%}")
        axes.set_xlabel("step")
    figure.axes[0].set_ylabel("true reward")
    figure.axes[-1].legend(fontsize=7)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Write known_truth_details.json, differences.png and curves.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--folder", type=Path, required=True)
    args = parser.parse_args()
    results = load_all(args.output, args.seeds, dict.fromkeys(names(FRACTIONS)))
    args.folder.mkdir(parents=True, exist_ok=True)
    write_json(args.folder / "known_truth_details.json", {arm: details(runs) for arm, runs in results.items()})
    draw_differences(results, args.folder / "differences.png")
    draw_curves(results, args.folder / "curves.png")


if __name__ == "__main__":
    main()
