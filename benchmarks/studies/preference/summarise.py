"""Prints the tables of the study, and writes its numbers and figures.

python summarise.py --output OUT --summary ../../../docs/results/preference
"""

import argparse
import itertools
import json
import math
import statistics
from collections import defaultdict
from pathlib import Path

import figures
from arms import AFTER, ARMS, LONG_ARMS, LONG_QUALITIES, QUALITIES, SEEDS
from world import write_json

# Two-sided 95 % points of Student's t by degrees of freedom.
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
MATCHED_KL = (2.0, 5.0)
FINAL_FIGURES = ("true", "proxy", "kl", "words", "repeated", "train_chosen", "train_rejected", "held_out_chosen")


def interval(values: list[float]) -> dict[str, float]:
    """Return the mean of independent values, one a seed, and its 95 % t-interval."""
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return {"mean": mean, "low": math.nan, "high": math.nan, "n": n}
    half = T_95[n - 1] * statistics.stdev(values) / math.sqrt(n)
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def paired(arm: dict[int, float], baseline: dict[int, float]) -> dict[str, float] | None:
    """Return the interval of arm - baseline over the seeds that both have; None without two such seeds."""
    both = [arm[seed] - baseline[seed] for seed in sorted(arm) if seed in baseline]
    return interval(both) if len(both) > 1 else None


def verdict(difference: dict[str, float] | None) -> str:
    """Apply the study's rule to a paired difference of a figure that should be large."""
    if difference is None:
        return "too few seeds"
    if difference["low"] > 0:
        return "better"
    return "worse" if difference["high"] < 0 else "no difference shown"


def show(value: dict[str, float] | None, digits: int = 2) -> str:
    """Format a mean with its interval."""
    if value is None:
        return "-"
    return f"{value['mean']:+.{digits}f} [{value['low']:+.{digits}f}, {value['high']:+.{digits}f}]"


def at_kl(curve: list[dict], kl: float, figure: str = "true") -> float | None:
    """Return a figure where a run first is that far from the reference, between two checkpoints by a straight line."""
    for before, after in itertools.pairwise(curve):
        if before["kl"] < kl <= after["kl"]:
            share = (kl - before["kl"]) / (after["kl"] - before["kl"])
            return before[figure] + share * (after[figure] - before[figure])
    return None


def load(folder: Path, arms, qualities=QUALITIES) -> dict[str, dict[str, dict[int, dict]]]:
    """Return the runs of a stage as {quality: {arm: {seed: result}}}; a run that is missing is named."""
    found = {quality: {arm: {} for arm in arms} for quality in qualities}
    for path in sorted(folder.glob("*.json")):
        run = json.loads(path.read_text())
        found[run["quality"]][run["arm"]][run["seed"]] = run
    for quality, of_arm in found.items():
        for arm, of_seed in of_arm.items():
            missing = set(SEEDS) - set(of_seed)
            if missing:
                print(f"missing: {quality} {arm} seeds {sorted(missing)}")
    return found


def compare(runs: dict, baseline: str = "dpo") -> dict:
    """Return what the last step says of each arm and quality, and the true reward at matched distances."""
    table = defaultdict(dict)
    for quality, of_arm in runs.items():
        for arm, of_seed in of_arm.items():
            last = {seed: run["curve"][-1] for seed, run in of_seed.items()}
            base = {seed: run["curve"][-1] for seed, run in of_arm[baseline].items()}
            row = {"setting": next(iter(of_seed.values()))["setting"], "seeds": sorted(of_seed)}
            for figure in FINAL_FIGURES:
                own = {seed: point[figure] for seed, point in last.items()}
                row[figure] = interval(list(own.values()))
                row[f"{figure}_by_seed"] = own
                row[f"{figure}_difference"] = paired(own, {seed: point[figure] for seed, point in base.items()})
            row["fall_from_peak"] = interval(
                [max(p["true"] for p in run["curve"]) - run["curve"][-1]["true"] for run in of_seed.values()]
            )
            for kl in MATCHED_KL:
                own = {s: value for s, run in of_seed.items() if (value := at_kl(run["curve"], kl)) is not None}
                theirs = {
                    s: value for s, run in of_arm[baseline].items() if (value := at_kl(run["curve"], kl)) is not None
                }
                row[f"at_kl_{kl:g}"] = {
                    "reached": len(own),
                    "true": interval(list(own.values())) if own else None,
                    "difference": paired(own, theirs),
                }
            table[quality][arm] = row
    return table


def pool(table: dict, baseline: str = "dpo") -> dict:
    """Return the true reward of each arm averaged over the qualities, seed by seed, and its difference to DPO's."""
    means = {}
    for arm in next(iter(table.values())):
        of_seed = [table[quality][arm]["true_by_seed"] for quality in table]
        shared = set.intersection(*(set(values) for values in of_seed))
        means[arm] = {seed: statistics.fmean(values[seed] for values in of_seed) for seed in shared}
    return {
        arm: {"true": interval(list(values.values())), "difference": paired(values, means[baseline])}
        for arm, values in means.items()
    }


def reward_models(output: Path) -> dict:
    """Return how good the reward models' margins are: how often they order a pair as the truth, and as its label."""
    rows = {}
    for quality in QUALITIES:
        worlds = [json.loads((output / "worlds" / f"seed{s}-{quality}" / "world.json").read_text()) for s in SEEDS]
        row = {"held_out_order": interval([world["held_out_accuracy"] for world in worlds])}
        for name in ("in_sample", "cross_fitted", "true_margin"):
            sides = [[(pair[name], pair["true_margin"]) for pair in world["pairs"]] for world in worlds]
            row[name] = {
                "right_order": interval([statistics.fmean((m > 0) == (t > 0) for m, t in rows_) for rows_ in sides]),
                "agrees_with_label": interval([statistics.fmean(m > 0 for m, _ in rows_) for rows_ in sides]),
                "mean_size": interval([statistics.fmean(abs(m) for m, _ in rows_) for rows_ in sides]),
                "temperature": interval([fit_temperature([m for m, _ in rows_]) for rows_ in sides]),
            }
        rows[quality] = row
    return rows


def fit_temperature(margins: list[float]) -> float:
    """Return the temperature with the smallest Bradley-Terry loss of margins of labelled pairs, by golden section."""

    def loss(log_temperature: float) -> float:
        scaled = [margin / math.exp(log_temperature) for margin in margins]
        return sum(math.log1p(math.exp(-abs(x))) + max(-x, 0.0) for x in scaled)

    low, high, ratio = math.log(0.02), math.log(50.0), (math.sqrt(5) - 1) / 2
    for _ in range(40):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return math.exp((low + high) / 2)


def print_rewards(table: dict, pooled: dict | None) -> None:
    """Print true rewards and their differences to DPO, averaged over the qualities and for each, in Markdown."""
    settings = next(iter(table.values()))
    print("| Arm | Setting | Quality | True reward | Difference to DPO | Verdict |")
    print("|---|---|---|---|---|---|")
    blocks = ({"all": pooled} if pooled else {}) | table
    for quality, of_arm in blocks.items():
        for arm, row in of_arm.items():
            difference = None if arm == "dpo" else row["difference" if quality == "all" else "true_difference"]
            cells = [arm, brief(settings[arm]["setting"]), quality, show(row["true"]), show(difference)]
            print("|", " | ".join([*cells, "" if arm == "dpo" else verdict(difference)]), "|")


def print_paths(table: dict) -> None:
    """Print where the runs ended (means over seeds), and the true reward at the same distance, in Markdown."""
    names = ("kl", "proxy", "fall_from_peak", "repeated", "words", "train_chosen", "train_rejected")
    matched = [f"At KL {kl:g}: true reward | difference to DPO | verdict (seeds)" for kl in MATCHED_KL]
    print("| Quality | Arm | KL | Proxy | Fall | Repeated | Words | Chosen | Rejected |", " | ".join(matched), "|")
    print("|---" * (2 + len(names) + 3 * len(MATCHED_KL)) + "|")
    for quality, of_arm in table.items():
        for arm, row in of_arm.items():
            cells = [quality, arm, *(f"{row[name]['mean']:.2f}" for name in names)]
            for kl in MATCHED_KL:
                at = row[f"at_kl_{kl:g}"]
                difference = None if arm == "dpo" else at["difference"]
                word = "" if arm == "dpo" else verdict(difference)
                cells += ["-" if at["true"] is None else f"{at['true']['mean']:.2f}", show(difference)]
                cells.append(f"{word} ({at['reached']})")
            print("|", " | ".join(cells), "|")


def contrasts(final: dict, long: dict) -> dict:
    """Return the differences that hypotheses 2, 3 and 6 speak of, and that are not differences in reward to DPO."""

    def ends(arm: str, quality: str, figure: str = "true", runs: dict = final) -> dict[int, float]:
        return {seed: run["curve"][-1][figure] for seed, run in runs[quality][arm].items()}

    def mean(arm: str) -> dict[int, float]:
        of_quality = [ends(arm, quality) for quality in QUALITIES]
        return {seed: statistics.fmean(values[seed] for values in of_quality) for seed in of_quality[0]}

    def falls(arm: str) -> dict[int, float]:
        curves = {seed: [point["true"] for point in run["curve"]] for seed, run in long["medium"][arm].items()}
        return {seed: max(curve) - curve[-1] for seed, curve in curves.items()}

    rows = {}
    for arm, other in (("calibrated", "raw"), ("cross_fitted", "calibrated"), ("oracle", "cross_fitted")):
        rows[f"madpo {arm} - {other}, true reward"] = paired(mean(f"madpo_{arm}"), mean(f"madpo_{other}"))
    for arm in ("rpo_0.005", "rpo_0.05"):
        for figure in ("train_chosen", "train_rejected"):
            own, base = (ends(name, "medium", figure, long) for name in (arm, "dpo"))
            rows[f"one beta, {arm} - dpo, {figure}"] = paired(own, base)
        rows[f"one beta, {arm} - dpo, fall from peak"] = paired(falls(arm), falls("dpo"))
    for arm in ARMS:
        rows[f"{arm}, low - high, true reward"] = paired(ends(arm, "low"), ends(arm, "high"))
    return rows


def after(final: dict, folder: Path) -> dict:
    """Return what was run when the results were known: true reward and KL of settings that tuning did not choose.

    Averaged over the qualities, with the difference of the oracle's true reward to it.
    """
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    oracle = {(q, s): run["curve"][-1]["true"] for q in final for s, run in final[q]["madpo_oracle"].items()}
    rows = {}
    for arm, index in AFTER:
        own = {(r["quality"], r["seed"]): r["curve"][-1] for r in runs if (r["arm"], r["index"]) == (arm, index)}

        def mean(values: dict, seed: int) -> float:
            return statistics.fmean(values[quality, seed] for quality in QUALITIES)

        true, kl = ({key: point[figure] for key, point in own.items()} for figure in ("true", "kl"))
        rows[f"{arm}, {brief(ARMS[arm].settings[index])}"] = {
            "true": interval([mean(true, seed) for seed in SEEDS]),
            "kl": interval([mean(kl, seed) for seed in SEEDS]),
            "oracle's difference": interval([mean(oracle, seed) - mean(true, seed) for seed in SEEDS]),
            "true_by_run": {f"{quality}, {seed}": value for (quality, seed), value in true.items()},
        }
    return rows


def brief(setting: dict) -> str:
    """Return a setting in a few words."""
    inner = setting.get("weighting_kwargs") or next(iter(setting.get("loss_kwargs", {}).values()), {})
    words = [f"{k} {v:g}" for k, v in inner.items() if isinstance(v, float)]
    return ", ".join([f"beta {setting['beta']:g}", *words])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--summary", type=Path, required=True)
    args = parser.parse_args()
    args.summary.mkdir(parents=True, exist_ok=True)
    final, long = load(args.output / "final", ARMS), load(args.output / "long", LONG_ARMS, LONG_QUALITIES)
    table, long_table, models = compare(final), compare(long), reward_models(args.output)
    pooled = pool(table)
    for title, block, means in (("Comparison", table, pooled), ("One beta", long_table, None)):
        print(f"\n## {title}\n")
        print_rewards(block, means)
        print()
        print_paths(block)
    print("\n## Contrasts\n")
    for name, difference in (rows := contrasts(final, long)).items():
        print(f"{name}: {show(difference)}")
    print("\n## After\n")
    for name, row in (later := after(final, args.output / "after")).items():
        print(f"{name}: " + ", ".join(f"{key} {show(value)}" for key, value in row.items() if key != "true_by_run"))
    print("\n## Reward models\n")
    for quality, row in models.items():
        print(f"{quality}: held-out pairs in the true order {show(row['held_out_order'])}")
        for name in ("in_sample", "cross_fitted", "true_margin"):
            print(f"  {name}: " + ", ".join(f"{key} {show(value)}" for key, value in row[name].items()))
    chosen = json.loads((args.output / "chosen.json").read_text())
    numbers = {"comparison": table, "pooled": pooled, "one_beta": long_table}
    write_json(
        args.summary / "preference.json",
        numbers | {"contrasts": rows, "after": later, "reward_models": models, "chosen": chosen},
    )
    figures.draw_differences(table, args.summary / "differences.png")
    figures.draw_distance(final, args.summary / "distance.png")
    figures.draw_log_probs(final, args.summary / "log_probs.png")
    figures.draw_distance(long, args.summary / "one_beta.png", log_probs=True)
    tuning = [json.loads(path.read_text()) for path in sorted((args.output / "tuning").glob("*.json"))]
    figures.draw_tuning(tuning, args.summary / "tuning.png")


if __name__ == "__main__":
    main()
