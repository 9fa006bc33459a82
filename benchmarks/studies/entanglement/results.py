"""Prints the tables of the study, and writes its numbers and figures.

python results.py --output OUT --summary ../../../docs/results/entanglement
"""

import argparse
import itertools
import statistics
from pathlib import Path

import drawing
from records import DURING, MAIN, Runs, during, load, watched
from run import SHARED_ARMS
from training import CHECKS, arms
from worlds import CONDITIONS, preference

# Of the study `preference`, whose folder `worlds` has made importable.
from summarise import interval, paired, show  # isort: skip

ENDS = (
    "train_chosen", "train_rejected", "train_margin", "train_order", "held_out_chosen", "held_out_rejected",
    "held_out_margin", "held_out_order", "true", "kl",
)  # fmt: skip


def at_margin(curve: list[dict], margin: float) -> float | None:
    """Return the chosen answers' drift where the trained-on margin first gets there; a line between points."""
    for before, after in itertools.pairwise(curve):
        if before["train_margin"] < margin <= after["train_margin"]:
            share = (margin - before["train_margin"]) / (after["train_margin"] - before["train_margin"])
            return before["train_chosen"] + share * (after["train_chosen"] - before["train_chosen"])
    return None


def row(runs: Runs, baseline: Runs) -> dict:
    """Return an arm's figures at the end and over training, with their differences to the baseline."""
    result = {"seeds": sorted(runs), "seconds": statistics.fmean(run["seconds"] for run in runs.values())}
    for name in ENDS:
        own, base = ({s: run["curve"][-1].get(name) for s, run in of.items()} for of in (runs, baseline))
        if None not in own.values():
            result |= {name: interval(list(own.values())), f"{name}_difference": paired(own, base)}
            result[f"{name}_by_seed"] = own
    for name in DURING:
        own, base = ({s: during(run)[name] for s, run in of.items()} for of in (runs, baseline))
        result |= {name: interval(list(own.values())), f"{name}_difference": paired(own, base)}
        result[f"{name}_by_seed"] = own
    halves = {s: baseline[s]["curve"][-1]["train_margin"] / 2 for s in runs if s in baseline}
    own, base = (
        {s: drift for s, half in halves.items() if (drift := at_margin(of[s]["curve"], half)) is not None}
        for of in (runs, baseline)
    )
    result |= {"at_margin": interval(list(own.values())) if own else None, "at_margin_seeds": len(own)}
    return {**result, "at_margin_difference": paired(own, base)}


def agreement(runs: Runs) -> dict:
    """Return the share of right predictions, and that of saying what most answers of the step then did."""
    right = [statistics.fmean(watched(line)["agreement"] for line in run["watched"]) for run in runs.values()]
    simple = []
    for run in runs.values():
        shares = [watched(line)[name] for line in run["watched"] for name in ("observed_rises", "observed_falls")]
        simple.append(statistics.fmean(max(share, 1 - share) for share in shares))
    of_steps = [[watched(line)["agreement"] for line in run["watched"]] for run in runs.values()]
    by_step = [statistics.fmean(step) for step in zip(*of_steps, strict=True)]
    better = interval([a - b for a, b in zip(right, simple, strict=True)])
    return {"agreement": interval(right), "yardstick": interval(simple), "difference": better, "by_step": by_step}


def verdict(difference: dict | None) -> str:
    """Apply the rule of the plan."""
    if difference is None:
        return "too few seeds"
    return "holds up" if difference["low"] > 0 else "lets down" if difference["high"] < 0 else "no difference shown"


def numbers(found: dict) -> dict:
    """Return every figure of the study."""
    main = {world: {arm: row(found["main", world, arm], found["main", world, "dpo"]) for arm in arms(world)}
            for world in MAIN}  # fmt: skip
    shared = {c: {arm: row(found["shared", c, arm], found["shared", c, "dpo"]) for arm in SHARED_ARMS}
              for c in CONDITIONS}  # fmt: skip
    for condition, rows in shared.items():  # against words that are not shared
        of = [found["shared", c, "dpo"] for c in (condition, "separate")]
        for name in ("cosine", "own_ideal", "own_rises"):
            rows["dpo"][f"{name}_minus_separate"] = paired(*({s: during(r)[name] for s, r in o.items()} for o in of))
        chosen = ({s: r["curve"][-1]["train_chosen"] for s, r in o.items()} for o in of)
        rows["dpo"]["train_chosen_minus_separate"] = paired(*chosen)
    checks = {world: {setting: agreement(found["check", world, setting]) for setting in CHECKS} for world in MAIN}
    return {"main": main, "checks": checks, "shared": shared}


def print_tables(table: dict) -> None:
    """Print the tables in Markdown."""

    def lines(rows: dict, columns: list[str]) -> None:
        print("| | " + " | ".join(columns) + " |" + "\n|---" + "|---" * len(columns) + "|")
        for name, of in rows.items():
            print(f"| {name} | " + " | ".join(show(of.get(column)) for column in columns) + " |")

    for title, worlds in (("main", table["main"]), ("shared", table["shared"])):
        for world, rows in worlds.items():
            print(f"\n## {title}: {world}\n")
            for arm, of in rows.items():
                matched = f"{verdict(of['at_margin_difference'])} ({of['at_margin_seeds']} seeds)"
                print(f"{arm}: {verdict(of['train_chosen_difference'])}, at equal margin {matched}")
            ends = [name for name in ENDS if name in rows["dpo"]]
            for columns in (ends, [f"{name}_difference" for name in [*ends, "at_margin"]], list(DURING),
                            [f"{name}_difference" for name in DURING]):  # fmt: skip
                print()
                lines(rows, columns)
    print("\n## shared, DPO, minus separate\n")
    names = ("cosine", "own_ideal", "own_rises", "train_chosen")
    lines({c: rows["dpo"] for c, rows in table["shared"].items()}, [f"{name}_minus_separate" for name in names])
    for world, rows in table["checks"].items():
        print(f"\n## check: {world}\n")
        lines(rows, ["agreement", "yardstick", "difference"])


def main() -> None:
    """Write the numbers and figures and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="the folder that run.py wrote")
    parser.add_argument("--summary", type=Path, required=True)
    args = parser.parse_args()
    args.summary.mkdir(parents=True, exist_ok=True)
    found = load(args.output)
    table = numbers(found)
    print_tables(table)
    preference.write_json(args.summary / "entanglement.json", table)
    drawing.draw_training(found, args.summary / "training.png")
    drawing.draw_checks(table, args.summary / "checks.png")
    print(f"\nNumbers and figures are in {args.summary}.")


if __name__ == "__main__":
    main()
