"""Print the tables of the experiments in Markdown, from what their scripts and figures.py summed up.

python tables.py ../../../docs/results/selection
"""

import json
import sys
from pathlib import Path

KINDS = ("plain", "flipped", "junk", "copy")


def show(interval: dict[str, float], sign: str = "+", digits: int = 2) -> str:
    """Format a mean with its interval."""
    mean, low, high = (f"{interval[key]:{sign}.{digits}f}" for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def verdict(difference: dict[str, float], lower_is_better: bool = False) -> str:
    """Apply the study's rule to a difference."""
    if difference["low"] > 0 or difference["high"] < 0:
        return "helps" if (difference["low"] > 0) != lower_is_better else "hurts"
    return "no effect shown"


def differences(arm: str, to_full: dict, to_random: dict, digits: int, lower_is_better: bool = False) -> list[str]:
    """Return the cells of an arm's differences to all rows and to random, empty where they are to itself."""
    cells = []
    for difference, itself in ((to_full, arm == "full"), (to_random, arm == "full" or arm.startswith("random"))):
        cells += ["", ""] if itself else [show(difference, digits=digits), verdict(difference, lower_is_better)]
    return cells


def print_pruning(folder: Path) -> None:
    """Print the test losses of experiment 2."""
    print("\n| arm | test loss | minus all rows | | minus random | | mean answer, characters |")
    print("|---|---|---|---|---|---|---|")
    for arm, row in json.loads((folder / "pruning.json").read_text()).items():
        cells = [f"`{arm}`", show(row["loss"], "", 4), *differences(arm, row["to_full"], row["to_random"], 4, True)]
        print("|", " | ".join([*cells, f"{row['length']['mean']:.0f}"]), "|")


def print_human(folder: Path) -> None:
    """Print the judge's rewards and the held-out accuracies of experiment 3."""
    found = json.loads((folder / "human.json").read_text())
    print(f"\nThe judge's reward before DPO: {show(found['judge_of_reference'], '')}")
    print("\n| arm | judge's reward | minus all pairs | | minus random | | held-out accuracy | minus random "
          "| margin and length |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|")
    for arm, row in found["arms"].items():
        judge, accuracy = row["judge"], row["accuracy"]
        cells = [f"`{arm}`", show(judge["mean"], ""), *differences(arm, judge["to_full"], judge["to_random"], 2)]
        cells += [show(accuracy["mean"], "", 3), "" if cells[-1] == "" else show(accuracy["to_random"], digits=3)]
        cells.append(show(row["margin_and_length"]) if "margin_and_length" in row else "")
        print("|", " | ".join(cells), "|")


def print_known_truth(folder: Path) -> None:
    """Print what each arm of experiment 1 ended with, what it kept, and its course."""
    summary = json.loads((folder / "known_truth.json").read_text())
    details = json.loads((folder / "known_truth_details.json").read_text())
    print("| arm | pairs | true reward | minus all pairs | | minus random | | held-out agreement |")
    print("|---|---|---|---|---|---|---|---|")
    for arm, row in summary.items():
        cells = [f"`{arm}`", str(details[arm]["kept"]), show(row["true"], "")]
        cells += differences(arm, row["to_full"], row["to_random"], 2)
        print("|", " | ".join([*cells, show(row["held_out_accuracy"], "", 3)]), "|")
    print("\n| arm | plain | exchanged | junk | copies | true margin | entropy, of random | margin and length |")
    print("|---|---|---|---|---|---|---|---|")
    for arm, row in summary.items():
        own = details[arm]
        cells = [f"`{arm}`", *(f"{row['kinds'][kind]:.1%}" for kind in KINDS), f"{own['true_margin']['mean']:.2f}"]
        cells.append(", ".join(f"{own[k]['mean']:.0f}" for k in ("entropy", "entropy_of_random") if k in own))
        cells.append(show(own["margin_and_length"]) if "margin_and_length" in own else "")
        print("|", " | ".join(cells), "|")
    print("\n| arm | " + " | ".join(f"step {step}" for step in details["full"]["curve"]) + " | best steps | best "
          "minus last | reaches the last of all pairs at | KL | proxy | repeated words |")  # fmt: skip
    print("|---" * (len(details["full"]["curve"]) + 7) + "|")
    for arm, own in details.items():
        end = own["figures_at_the_end"]
        cells = [f"`{arm}`", *(f"{point['mean']:.2f}" for point in own["curve"].values())]
        cells += [", ".join(map(str, own["best_step"].values())), show(own["best_to_last"])]
        cells.append(", ".join("-" if step is None else str(step) for step in summary[arm]["steps_to_full"]))
        cells += [f"{end['kl']['mean']:.1f}", f"{end['proxy']['mean']:.2f}", f"{end['repeated']['mean']:.0%}"]
        print("|", " | ".join(cells), "|")
    print("\n| arm | " + " | ".join(f"step {step}" for step in details["full"]["curve"]) + " | reaches the last "
          "agreement of all pairs at |")  # fmt: skip
    print("|---" * (len(details["full"]["curve"]) + 2) + "|")
    for arm, own in details.items():
        cells = [f"`{arm}`", *(f"{point['mean']:.3f}" for point in own["agreement"]["curve"].values())]
        cells.append(", ".join("-" if step is None else str(step) for step in own["agreement"]["steps_to_full"]))
        print("|", " | ".join(cells), "|")


def print_known_truth_cost(folder: Path) -> None:
    """Print what the selections of experiment 1 took, and how many steps of training take as long."""
    found = json.loads((folder / "known_truth_cost.json").read_text())
    print("\n| | processor seconds | of a DPO run | that is, in steps |")
    print("|---|---|---|---|")
    for name, row in found["parts"].items():
        share = row["of_training"]
        cells = [show(row["seconds"], ""), show(share, "", 3), f"{share['mean'] * found['steps']:.1f}"]
        print("|", " | ".join([name if " " in name else f"`{name}`", *cells]), "|")


def main() -> None:
    """Print the tables of the experiments that are summed up."""
    folder = Path(sys.argv[1])
    for name, print_tables in (
        ("known_truth", print_known_truth),
        ("known_truth_cost", print_known_truth_cost),
        ("pruning", print_pruning),
        ("human", print_human),
    ):
        if (folder / f"{name}.json").exists():
            print_tables(folder)


if __name__ == "__main__":
    main()
