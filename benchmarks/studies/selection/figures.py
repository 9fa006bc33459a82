"""Figures of the three experiments, and what the arms of the first kept and when they were at their best.

python figures.py --output OUT/known_truth --folder ../../../docs/results/selection

Reads the runs of experiment 1, and for the others what `--summary` has written to the folder.
"""

import json
import statistics
from pathlib import Path

from arms import ARMS, names, reading_arguments, use
from known_truth import CHECKPOINTS, FRACTIONS, STEPS
from matplotlib.figure import Figure

use("reweighting")
from common import load_all, mean_and_interval, paired, write_json  # noqa: E402

COLOURS = dict(zip(ARMS, ("0.5", "tab:blue", "tab:cyan", "tab:orange", "tab:green", "tab:red"), strict=True))
COLOURS |= {"perplexity": "tab:green", "el2n": "tab:blue", "grand": "tab:orange"}


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


def draw_differences(differences: dict[str, dict[str, float]], what: str, path: Path) -> None:
    """Draw each arm's difference to all rows, with its interval.

    Args:
        differences: of arms named `<arm>-<fraction>`.
        what: the figure, for the axis.
        path: of the picture.
    """
    arms, fractions = (
        list(dict.fromkeys(parts)) for parts in zip(*(n.rsplit("-", 1) for n in differences), strict=True)
    )
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for i, arm in enumerate(arms):
        for j, fraction in enumerate(fractions):
            difference = differences[f"{arm}-{fraction}"]
            place, mean = j + 0.12 * (i - (len(arms) - 1) / 2), difference["mean"]
            error = [[mean - difference["low"]], [difference["high"] - mean]]
            label = arm if j == 0 else None
            axes.errorbar(place, mean, yerr=error, fmt="o", color=COLOURS[arm], capsize=2, label=label)
    axes.axhline(0, color="0.3", linewidth=0.8)
    axes.set_xticks(range(len(fractions)), [f"{float(fraction):.0%} of the rows" for fraction in fractions])
    axes.set_ylabel(f"{what} minus that of all rows")
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


def draw_others(folder: Path) -> None:
    """Draw the differences of experiments 2 and 3, where they are summed up."""
    path = folder / "pruning.json"
    if path.exists():
        rows = json.loads(path.read_text())
        found = {arm: row["to_full"] for arm, row in rows.items() if arm != "full"}
        draw_differences(found, "test loss", folder / "pruning.png")
    path = folder / "human.json"
    if path.exists():
        rows = json.loads(path.read_text())["arms"]
        found = {arm: row["judge"]["to_full"] for arm, row in rows.items() if arm != "full"}
        draw_differences(found, "the judge's reward", folder / "human.png")


def main() -> None:
    """Write known_truth_details.json, curves.png, differences.png, and pruning.png and human.png."""
    args = reading_arguments(__doc__)
    results = load_all(args.output, args.seeds, dict.fromkeys(names(FRACTIONS)))
    args.folder.mkdir(parents=True, exist_ok=True)
    write_json(args.folder / "known_truth_details.json", {arm: details(runs) for arm, runs in results.items()})
    full = true_reward(results["full"], STEPS)
    arms = [arm for arm in results if arm != "full"]
    differences = {arm: paired(true_reward(results[arm], STEPS), full) for arm in arms}
    draw_differences(differences, "true reward", args.folder / "differences.png")
    draw_curves(results, args.folder / "curves.png")
    draw_others(args.folder)


if __name__ == "__main__":
    main()
