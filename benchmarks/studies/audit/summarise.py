"""Prints the study's tables: `python summarise.py --output OUT`. Means over seeds, and the range over them."""

import argparse
import json
from collections import defaultdict
from pathlib import Path


def spread(values: list[float]) -> str:
    """Return mean and range."""
    return f"{sum(values) / len(values):.3f} ({min(values):.3f}-{max(values):.3f})"


def main() -> None:
    """Print, for each data set: FLoRA, loss and extraction by epoch, and every attack after the last one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    for folder in sorted(path for path in options.output.iterdir() if path.is_dir()):
        results = [json.loads(path.read_text()) for path in sorted(folder.glob("seed*/*.json"))]
        arms = defaultdict(list)
        for result in results:
            arms[result["arm"]].append(result)
        print(f"# {folder.name}\n\n| arm | epoch | AUC flora | AUC loss | held-out loss | greedy | held out |")
        print("|---|---|---|---|---|---|---|")
        for arm, runs in arms.items():
            for i, point in enumerate(runs[0]["membership"]["epochs"]):
                of = [run["membership"]["epochs"][i] for run in runs]
                written = [run["extraction"]["epochs"][i] for run in runs]
                cells = [
                    *(spread([p["attacks"][name]["auc"] for p in of]) for name in ("flora", "loss")),
                    spread([p["utility"]["held_out_loss"] for p in of]),
                    *(spread([w[side]["greedy"]["share"] for w in written]) for side in ("members", "non_members")),
                ]
                print(f"| {arm} | {point['epoch']:.0f} | {' | '.join(cells)} |")
        print("\n| arm | attack | AUC | above flora | TPR at 1 % FPR | gate |\n|---|---|---|---|---|---|")
        for arm, runs in arms.items():
            for name in runs[0]["membership"]["attacks"]:
                of = [run["membership"]["attacks"][name] for run in runs]
                above = [o["over"]["flora"]["auc"] for o in of if "flora" in o["over"]]
                stamped = sum(run["membership"]["confounded"] for run in runs)
                cells = [spread([o["auc"] for o in of]), spread(above) if above else ""]
                cells.append(spread([o["tpr"]["0.01"]["tpr"] for o in of]))
                print(f"| {arm} | {name} | {' | '.join(cells)} | {stamped} of {len(runs)} stamped |")
        print()


if __name__ == "__main__":
    main()
