"""Runs the study: `python run.py --output OUT --gsm8k gsm8k_train.jsonl.gz`. What is there already is not repeated."""

import argparse
import json
import os
from pathlib import Path

from world import DATA, LENGTH, make_world

from hf_gradkit.cli.main import main as gradkit

SEEDS = (0, 1, 2)
FULL = {"learning_rate": 1e-3}
LORA = {"learning_rate": 5e-3, "use_peft": True, "lora_target_modules": "all-linear", "lora_r": 16, "lora_alpha": 32}
ARMS: dict[str, dict] = {
    "full": FULL,
    "lora": LORA,
    "lora_rank_2": {**LORA, "lora_r": 2, "lora_alpha": 4},
    "lora_dropout": {**LORA, "lora_dropout": 0.3},
    "full_weight_decay": {**FULL, "weight_decay": 0.3},
    "full_duplicated": FULL,  # a fifth of the training rows four times over: what deduplication would remove
}
TRAIN = {
    "num_train_epochs": 6, "per_device_train_batch_size": 8, "lr_scheduler_type": "constant", "max_length": LENGTH,
    "bf16": False, "activation_checkpointing": False, "save_strategy": "epoch", "save_only_model": True,
    "logging_steps": 25, "report_to": "none", "disable_tqdm": True, "example_log": True,
}  # fmt: skip


def flags(options: dict) -> list[str]:
    """Return options as a command line has them."""
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]


def call(*command: str, **options) -> None:
    """Run a command of gradkit, or raise."""
    if gradkit([*command, *flags(options)]):
        raise RuntimeError(f"gradkit {' '.join(command)} failed.")


def run_arm(arm: str, world: Path, seed: int, result: Path) -> None:
    """Train and audit one arm, and write what was found."""
    folder = world / arm
    call("audit", "hold_out", dataset_name=world / "records.jsonl", output_dir=folder, fraction=1 / 3, seed=seed)
    train = folder / "_hold_out" / "train.parquet"
    if arm == "full_duplicated":
        train = duplicate(train, world / "duplicated.jsonl")
    model = {"model_name_or_path": world / "base", "dataset_name": train, "output_dir": folder, "seed": seed}
    if not (folder / "trainer_state.json").exists():  # written at the end
        call("sft", **model, **TRAIN, **ARMS[arm])
    common = {
        "model_name_or_path": folder, "checkpoints": True, "per_device_eval_batch_size": 32, "seed": seed,
        "reference_model_name_or_path": world / "base",
    }  # fmt: skip
    names = "loss zlib min_k min_k_plus_plus flora log_reference error_zone window gradient_norm supervised".split()  # noqa: SIM905
    if gradkit(["audit", "membership", *flags(common), "--attacks", *names]):
        raise RuntimeError("The membership audit failed.")
    call("audit", "extraction", **common, skip_short=True, generations=0)
    found = {
        kind: json.loads((folder / "_audit" / f"{kind}.json").read_text()) for kind in ("membership", "extraction")
    }
    temporary = result.with_suffix(".tmp")
    temporary.write_text(json.dumps({"arm": arm, "seed": seed, **found}))
    os.replace(temporary, result)


def duplicate(train: Path, target: Path) -> Path:
    """Write the training rows with every fifth of them four times, and return the file."""
    import pyarrow.parquet as pq

    rows = pq.read_table(train).to_pylist()
    rows = [row for i, row in enumerate(rows) for _ in range(4 if i % 5 == 0 else 1)]
    target.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return target


def main() -> None:
    """Run every arm whose result is not there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--gsm8k", type=Path)
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--check", action="store_true", help="one short run, which counts for nothing")
    options = parser.parse_args()
    if options.check:
        TRAIN.update(num_train_epochs=1)
        options.seeds, options.arms, options.data = [1000], options.arms[:1], options.data[:1]
    for data in options.data:
        for seed in options.seeds:
            world = options.output / data / f"seed{seed}"
            make_world(data, seed, world, options.gsm8k, steps=20 if options.check else 800)
            for arm in options.arms:
                result = world / f"{arm}.json"
                if not result.exists():
                    run_arm(arm, world, seed, result)


if __name__ == "__main__":
    main()
