"""Print the tables of experiment 1 in Markdown, from what known_truth.py and figures.py summed up.

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


def verdict(difference: dict[str, float]) -> str:
    """Apply the study's rule to a difference of true reward."""
    if difference["low"] > 0:
        return "helps"
    return "hurts" if difference["high"] < 0 else "no effect shown"


def main() -> None:
    """Print what each arm ended with, what it kept, and its course."""
    folder = Path(sys.argv[1])
    summary = json.loads((folder / "known_truth.json").read_text())
    details = json.loads((folder / "known_truth_details.json").read_text())
    print("| arm | pairs | true reward | minus all pairs | | minus random | | held-out agreement |")
    print("|---|---|---|---|---|---|---|---|")
    for arm, row in summary.items():
        cells = [f"`{arm}`", str(details[arm]["kept"]), show(row["true"], "")]
        for name in ("to_full", "to_random"):
            itself = arm == "full" or (name == "to_random" and arm.startswith("random"))
            cells += ["", ""] if itself else [show(row[name]), verdict(row[name])]
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


if __name__ == "__main__":
    main()
