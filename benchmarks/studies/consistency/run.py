"""Three ways to shuffle, and a healthy run, under the consistency monitor: `python run.py --output OUT`.

Starts four processes, which train every run one after the other, and writes `results.json` and the page's table.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SEEDS = (0, 1, 2)
STEPS = 60
# Seeds of the four workers' own shuffles; None: one loader, sharded by accelerate.
KINDS = {
    "healthy": None,
    "same seeds": [7, 7, 7, 7],
    "rank 0 differs": [8, 7, 7, 7],
    "every rank differs": [7, 8, 9, 10],
}
FIGURES = (
    "loss_dispersion",
    "loss_dispersion_ratio",
    "grad_norm_dispersion",
    "grad_norm_dispersion_ratio",
    "direction",
    "direction_ratio",
)


def summary(folder: Path) -> dict[str, dict]:
    """Return, for each kind of run, the means over its seeds, and what was warned of."""
    found = {}
    for kind in KINDS:
        runs = [json.loads((folder / f"{kind} {seed}.json").read_text()) for seed in SEEDS]
        of_kind = {"warnings": [run["warnings"] for run in runs], "first_warning": [run["warned_at"] for run in runs]}
        for name in FIGURES:
            key = f"consistency/{name}"
            per_seed = []
            for run in runs:
                values = [line[key] for line in run["lines"] if key in line]
                if values:  # a ratio is of the whole window already
                    per_seed.append(values[-1] if name.endswith("ratio") else statistics.mean(values))
            of_kind[name] = per_seed
        of_kind["loss"] = [statistics.mean(run["losses"][-10:]) for run in runs]
        changes = [[abs(a - b) for a, b in zip(run["losses"], run["losses"][1:], strict=False)] for run in runs]
        of_kind["roughness"] = [statistics.mean(values) for values in changes]
        found[kind] = of_kind
    return found


def interval(values: list[float]) -> str:
    """Return the mean of a few seeds and its 95 % interval (Student's t)."""
    if not values:
        return "-"
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.3f}"
    half = 4.303 * statistics.stdev(values) / len(values) ** 0.5  # t of 2 degrees of freedom
    return f"{mean:.3f} [{mean - half:.3f}, {mean + half:.3f}]"


def main() -> None:
    """Train what is to be trained, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    tasks = [
        {"name": f"{kind} {seed}", "seeds": None if own is None else [100 * seed + s for s in own], "seed": seed}
        for kind, own in KINDS.items()
        for seed in SEEDS
    ]
    (args.output / "tasks.json").write_text(json.dumps({"tasks": tasks, "steps": STEPS}))
    worker = [str(HERE / "worker.py"), str(args.output)]
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "4", *worker], check=True)
    found = summary(args.output)
    (args.output / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    for name in (*FIGURES, "loss", "roughness"):
        cells = [interval(found[kind][name]) for kind in KINDS]
        print(f"| {name} | {' | '.join(cells)} |")
    for kind in KINDS:
        print(f"{kind}: first warning at {found[kind]['first_warning']}")
    print(f"Results: {args.output / 'results.json'}")


if __name__ == "__main__":
    main()
