"""What the selections of experiment 1 cost, beside the training that follows them.

python cost.py --output OUT/known_truth --folder ../../../docs/results/selection

Each seed is a turn: one DPO run on all pairs as in the experiment, without its measurements; the cross-fitted margins,
which are three reward models; and each arm's selection, with an empty cache; in an order of the seed's own. Processor
seconds, and their ratio to those of the DPO run of the same turn. Worlds that are in OUT are used, others made.
"""

import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from arms import keep, names, reading_arguments, use
from datasets import Dataset
from known_truth import FRACTIONS, STEPS, cross_fit, make_world, train

use("preference")
from world import World  # noqa: E402

use("reweighting")
from common import mean_and_interval, show, write_json  # noqa: E402

TRAINING, CROSS_FITTING = "DPO on all pairs", "cross-fitted margins"
SELECTIONS = names(FRACTIONS)[1:]


def turn(world: World, seed: int, steps: int, wanted: list[str]) -> dict[str, dict[str, float]]:
    """Return what each part took, in an order of the seed's own."""
    with tempfile.TemporaryDirectory() as folder:
        output, dataset = Path(folder), Dataset.from_list(world.pairs)
        parts: dict[str, Callable[[], object]] = {
            TRAINING: lambda: train(world, dataset, seed, output, steps),
            CROSS_FITTING: lambda: cross_fit(world.policy, world.pairs, seed, output),
        }
        for name in SELECTIONS:
            parts[name] = lambda name=name: keep(name, dataset, world.policy, seed, output / name)
        order = random.Random(seed).sample(wanted, len(wanted))
        return {name: _seconds(parts[name]) for name in order}


def _seconds(part: Callable[[], object]) -> dict[str, float]:
    wall, processor = time.perf_counter(), time.process_time()
    part()
    return {"processor": time.process_time() - processor, "wall": time.perf_counter() - wall}


def main() -> None:
    """Write known_truth_cost.json and print it as a table."""
    args = reading_arguments(__doc__)
    torch.set_num_threads(1)
    parts, turns = [TRAINING, CROSS_FITTING, *SELECTIONS], {}
    for seed in args.seeds:
        world = make_world(seed, args.output)
        if not turns:  # imports and first calls count for no part
            turn(world, seed, 2, [TRAINING, *SELECTIONS])
        turns[seed] = turn(world, seed, STEPS, parts)
    table = {
        name: {
            "seconds": mean_and_interval([took[name]["processor"] for took in turns.values()]),
            "wall_seconds": mean_and_interval([took[name]["wall"] for took in turns.values()]),
            "of_training": mean_and_interval(
                [took[name]["processor"] / took[TRAINING]["processor"] for took in turns.values()]
            ),
        }
        for name in parts
    }
    write_json(args.folder / "known_truth_cost.json", {"steps": STEPS, "turns": turns, "parts": table})
    for name, row in table.items():
        print(f"{name:22} {show(row['seconds'], 2)} s   of a DPO run {show(row['of_training'], 3)}")


if __name__ == "__main__":
    main()
