"""Figures of the three experiments, and what the arms of the first kept and when they were at their best.

python figures.py --output OUT/known_truth --folder ../../../docs/results/selection

Reads the runs of experiment 1, and for the others what `--summary` has written to the folder.
"""

import json
from pathlib import Path

from arms import ARMS, names, reading_arguments, use
from known_truth import CHECKPOINTS, FRACTIONS, STEPS, steps_to_full
from matplotlib.figure import Figure

use("preference")
from world import PLAIN  # noqa: E402

use("reweighting")
from common import load_all, mean_and_interval, paired, write_json  # noqa: E402

AGREEMENT = "held_out_accuracy"
PAIRS_A_STEP = PLAIN["per_device_train_batch_size"]
COLOURS = dict(zip(ARMS, ("0.5", "tab:blue", "tab:cyan", "tab:orange", "tab:green", "tab:red"), strict=True))
COLOURS |= {"perplexity": "tab:green", "el2n": "tab:blue", "grand": "tab:orange"}


def at(of_seed: dict[int, dict], step: int, figure: str = "true") -> dict[int, float]:
    """Return each seed's true reward, or another figure, at a checkpoint."""
    return {seed: next(p[figure] for p in r["curve"] if p["step"] == step) for seed, r in of_seed.items()}


def agreement(of_seed: dict[int, dict], baselines: dict[str, dict[int, dict]]) -> dict:
    """Return an arm's agreement with the truth on held-out pairs at each checkpoint, and minus that of baselines."""
    values = {step: at(of_seed, step, AGREEMENT) for step in CHECKPOINTS}
    ends = {seed: r["curve"][-1] for seed, r in baselines["full"].items()}
    return {
        "curve": {step: mean_and_interval(list(v.values())) for step, v in values.items()},
        **{
            f"to_{name}": {step: paired(v, at(baseline, step, AGREEMENT)) for step, v in values.items()}
            for name, baseline in baselines.items()
            if baseline is not of_seed
        },
        "steps_to_full": steps_to_full(of_seed, ends, AGREEMENT),
    }


def details(of_seed: dict[int, dict], baselines: dict[str, dict[int, dict]]) -> dict:
    """Return of an arm its curves, its best checkpoint in each seed, and what it kept, as means over seeds."""
    curves = {step: at(of_seed, step) for step in CHECKPOINTS}
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
        "agreement": agreement(of_seed, baselines),
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


def draw_curves(results: dict[str, dict[int, dict]], figure: str, what: str, path: Path) -> None:
    """Draw a figure's mean and interval against steps: a column a fraction, and half of the arms in each row."""
    arms = list(ARMS)
    picture = Figure(figsize=(12, 6), layout="constrained")
    panels = picture.subplots(2, len(FRACTIONS), sharex=True, sharey=True)
    for row, some in zip(panels, (arms[1:4], [arms[0], *arms[4:]]), strict=True):
        for axes, fraction in zip(row, FRACTIONS, strict=True):
            for arm in ("full", *some):
                of_seed = results[arm if arm == "full" else f"{arm}-{fraction}"]
                points = [mean_and_interval(list(at(of_seed, step, figure).values())) for step in CHECKPOINTS]
                mean, low, high = ([point[key] for point in points] for key in ("mean", "low", "high"))
                colour = "black" if arm == "full" else COLOURS[arm]
                axes.plot(CHECKPOINTS, mean, marker=".", label=arm, color=colour, linewidth=2 - (arm != "full") / 2)
                axes.fill_between(CHECKPOINTS, low, high, color=colour, alpha=0.13, linewidth=0)
        row[0].set_ylabel(what)
        row[-1].legend(fontsize=8, loc="lower left")
    for above, below, fraction in zip(*panels, FRACTIONS, strict=True):
        above.set_title(f"{fraction:.0%} of the pairs")
        below.set_xticks([20, 40, 80, STEPS], [f"{step}\n{step * PAIRS_A_STEP:,}" for step in (20, 40, 80, STEPS)])
    picture.supxlabel("step, and pairs seen", fontsize="medium")
    picture.savefig(path, dpi=100)


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
    """Write known_truth_details.json, curves.png, agreement.png, differences.png, and pruning.png and human.png."""
    args = reading_arguments(__doc__)
    results = load_all(args.output, args.seeds, dict.fromkeys(names(FRACTIONS)))
    args.folder.mkdir(parents=True, exist_ok=True)
    full = results["full"]
    of_arm = {
        arm: details(runs, {"full": full, "random": results.get(f"random-{arm.rpartition('-')[2]}", full)})
        for arm, runs in results.items()
    }
    write_json(args.folder / "known_truth_details.json", of_arm)
    arms = [arm for arm in results if arm != "full"]
    differences = {arm: paired(at(results[arm], STEPS), at(full, STEPS)) for arm in arms}
    draw_differences(differences, "true reward", args.folder / "differences.png")
    draw_curves(results, "true", "true reward", args.folder / "curves.png")
    draw_curves(results, AGREEMENT, "agreement with the truth", args.folder / "agreement.png")
    draw_others(args.folder)


if __name__ == "__main__":
    main()
