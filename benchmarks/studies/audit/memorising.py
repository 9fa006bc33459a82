"""How long until greedy decoding writes half of the texts' suffixes: `python memorising.py --output OUT ...`.

Added after runs of the study had shown that six epochs write none. Full fine-tuning as in the arm `full`, for longer.
"""

import argparse
import json
import os
from pathlib import Path

from run import FULL, SEEDS, TRAIN, call
from world import DATA, LENGTH, make_world

EPOCHS, EVERY = 50, 5


def main() -> None:
    """Run every data set and seed whose result is not there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the study's folder: its base models are used")
    parser.add_argument("--gsm8k", type=Path)
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    options = parser.parse_args()
    for data in options.data:
        for seed in options.seeds:
            world = make_world(data, seed, options.output / data / f"seed{seed}", options.gsm8k, steps=800)
            result = options.output / "long" / f"{data}-seed{seed}.json"
            if not result.exists():
                result.parent.mkdir(exist_ok=True)
                run(world, seed, result)


def run(world: Path, seed: int, result: Path) -> None:
    """Train for long, and write the share of suffixes that greedy decoding writes at each checkpoint."""
    folder = world / "long"
    call("audit", "hold_out", dataset_name=world / "records.jsonl", output_dir=folder, fraction=1 / 3, seed=seed)
    data = {"model_name_or_path": world / "base", "dataset_name": folder / "_hold_out" / "train.parquet"}
    steps = EVERY * 400 // TRAIN["per_device_train_batch_size"]
    saving = {"num_train_epochs": EPOCHS, "save_strategy": "steps", "save_steps": steps, "example_log": False}
    if not (folder / "trainer_state.json").exists():
        call("sft", **data, output_dir=folder, seed=seed, **{**TRAIN, **FULL, **saving})
    call(
        *("audit", "extraction"),
        **{"model_name_or_path": folder, "reference_model_name_or_path": world / "base", "checkpoints": True},
        **{"skip_short": True, "generations": 0, "max_length": LENGTH, "per_device_eval_batch_size": 32, "seed": seed},
    )
    found = json.loads((folder / "_audit" / "extraction.json").read_text())
    temporary = result.with_suffix(".tmp")
    temporary.write_text(json.dumps({"seed": seed, "extraction": found}))
    os.replace(temporary, result)


if __name__ == "__main__":
    main()
