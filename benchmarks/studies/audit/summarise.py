"""Prints the study's tables and writes its figures: `python summarise.py --output OUT`.

Means over seeds, and in brackets the range over them. With `--folder`, all numbers go there as results.json.
"""

import argparse
import json
import os
from pathlib import Path

from results import SAID, UNDEFENDED, Run, best_epoch, differences, load, load_long


def spread(values: list[float], digits: int = 3) -> str:
    """Return mean and range."""
    return f"{sum(values) / len(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def print_epochs(arms: dict[str, list[Run]]) -> None:
    """Print question 1 and 3: FLoRA, loss and extraction, by epoch."""
    print("\n| arm | epoch | AUC of FLoRA | AUC of loss | greedy share | of held-out texts | held-out loss |")
    print("|---|---|---|---|---|---|---|")
    for arm, runs in arms.items():
        for points in zip(*(run["epochs"] for run in runs), strict=True):
            names = ("auc", "loss_auc", "greedy", "greedy_held_out", "held_out_loss")
            cells = [spread([point[name] for point in points]) for name in names]
            print(f"| {arm} | {points[0]['epoch']} | {' | '.join(cells)} |")


def print_attacks(arms: dict[str, list[Run]]) -> None:
    """Print question 2 and 4: every attack after the last epoch, and what it has over FLoRA."""
    print(
        "\n| arm | attack | AUC | TPR at 1 % FPR | AUC above FLoRA's | interval above 0 |\n|---|---|---|---|---|---|"
    )
    for arm in ("full", "lora"):
        runs = arms.get(arm, [])
        for name in runs[0]["attacks"] if runs else ():
            of = [run["attacks"][name] for run in runs]
            above = [one["above_flora"] for one in of if one["above_flora"]]
            cells = [spread([one["auc"] for one in of]), spread([one["tpr"] for one in of])]
            cells.append(spread([one["auc"] for one in above]) if above else "")
            cells.append(f"{sum(one['interval'][0] > 0 for one in above)} of {len(above)}" if above else "")
            print(f"| {arm} | {name} | {' | '.join(cells)} |")


def print_defences(arms: dict[str, list[Run]]) -> None:
    """Print question 5: each arm at its best epoch, and against the arm without its defence."""
    print("\n| arm | best epoch | " + " | ".join(SAID.values()) + " |\n|---|---|---|---|---|")
    for arm, runs in arms.items():
        points = [best_epoch(run) for run in runs]
        epochs = ", ".join(str(point["epoch"]) for point in points)
        print(f"| {arm} | {epochs} | " + " | ".join(spread([p[name] for p in points]) for name in SAID) + " |")
    print("\n| defence | against | " + " | ".join(SAID.values()) + " |\n|---|---|---|---|---|")
    for arm, other in UNDEFENDED.items():
        if arm in arms:
            cells = [changed(values) for values in differences(arms[arm], arms[other]).values()]
            print(f"| {arm} | {other} | {' | '.join(cells)} |")


def print_base(arms: dict[str, list[Run]]) -> None:
    """Print whether fine-tuning helped at all: the held-out loss before it, and the best change of any run."""
    runs = [run for of_arm in arms.values() for run in of_arm]
    least = min(best_epoch(run)["held_out_loss"] - run["base_held_out_loss"] for run in runs)
    before = spread([run["base_held_out_loss"] for run in arms["full"]])
    print(
        f"\nHeld-out loss of the base models: {before}; the least difference to it of any run and epoch: {least:+.4f}."
    )


def changed(values: list[float]) -> str:
    """Return differences, or that there is none: where they have not the same sign in all seeds."""
    same = all(value > 0 for value in values) or all(value < 0 for value in values)
    return spread(values) if same else f"none ({min(values):.3f} to {max(values):.3f})"


def print_long(found: dict[str, list[dict]]) -> None:
    """Print what memorising.py found: by epoch, the share of suffixes that greedy decoding writes."""
    print("\n## for longer\n\n| data | epoch | greedy share | of held-out texts |\n|---|---|---|---|")
    for data, runs in found.items():
        for points in zip(*(run["epochs"] for run in runs), strict=True):
            cells = [spread([point[name] for point in points]) for name in ("greedy", "greedy_held_out")]
            print(f"| {data} | {points[0]['epoch']} | {' | '.join(cells)} |")


def print_gate(found: dict[str, dict[str, list[Run]]]) -> None:
    """Print question 6."""
    gates = [run["gate"] for arms in found.values() for runs in arms.values() for run in runs]
    print(
        f"\nThe gate: {sum(gate['confounded'] for gate in gates)} of {len(gates)} stamped, "
        f"{sum(gate['noted'] for gate in gates)} noted; least p {min(gate['least_p'] for gate in gates):.4f}."
    )


def main() -> None:
    """Print the tables of each data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--folder", type=Path, help="where results.json and the pictures go")
    options = parser.parse_args()
    found = load(options.output)
    for data, arms in found.items():
        print(f"\n## {data}")
        for part in (print_epochs, print_attacks, print_defences, print_base):
            part(arms)
    print_gate(found)
    found_long = load_long(options.output)
    print_long(found_long)
    if options.folder is not None:
        from figures import draw_defences, draw_epochs, draw_long

        options.folder.mkdir(parents=True, exist_ok=True)
        temporary = options.folder / "results.json.tmp"
        temporary.write_text(json.dumps({"study": found, "longer": found_long}, indent=1) + "\n")
        os.replace(temporary, options.folder / "results.json")
        draw_epochs(found, options.folder / "epochs.png")
        draw_defences(found["secrets"], options.folder / "defences.png")
        draw_long(found_long, options.folder / "memorising.png")
        print(f"\nNumbers and pictures are in {options.folder}.")


if __name__ == "__main__":
    main()
