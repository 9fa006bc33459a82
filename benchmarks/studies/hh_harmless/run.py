"""Runs the study: `python run.py --data hh_harmless.jsonl.gz --output OUT`. What is there already is not repeated."""

import argparse
import json
import os
import time
from pathlib import Path

import torch
from measure import BETA, log_probs, measure, read_rows
from world import PLAIN, gradkit, make_data, make_world

SEEDS = [0, 1, 2, 3]
DPO = {"num_train_epochs": 1, "learning_rate": 2e-4, "warmup_steps": 10, "beta": BETA}
# Each arm: whose margins, and the options that differ from plain DPO.
ARMS: dict[str, tuple[str, dict]] = {
    "dpo": ("in_sample", {}),
    "madpo_raw": ("in_sample", {"weighting": "madpo", "weighting_kwargs": {"calibrate": False}}),
    "madpo": ("in_sample", {"weighting": "madpo"}),
    "madpo_cross_fitted": ("cross_fitted", {"weighting": "madpo"}),
    "rpo": ("in_sample", {"loss_type": "rpo"}),
    "rpo_average": ("in_sample", {"loss_type": "rpo", "loss_kwargs": {"rpo": {"normalization": "average"}}}),
    "beta_dpo": ("in_sample", {"loss_type": "beta_dpo"}),
}
KEPT = (
    "loss", "loss/unweighted", "rewards/accuracies", "weights/mean", "weights/ess", "weights/min", "weights/max",
    "logps/chosen_drift", "beta_dpo/beta",
)  # fmt: skip


def train(arm: str, seed: int, world: Path) -> tuple[Path, dict]:
    """Train an arm from the policy of the seed and return its folder and what its logs say."""
    margins, options = ARMS[arm]
    folder = world / "arms" / arm
    gradkit(
        "dpo", seed=seed, model_name_or_path=world / "policy",
        dataset_name=world / "scores" / margins / "scored.parquet", output_dir=folder,
        precompute_ref_log_probs=True, precompute_ref_batch_size=16, **DPO, **PLAIN, **options,
    )  # fmt: skip
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    logs = [{key: entry[key] for key in ("step", *KEPT) if key in entry} for entry in history if "loss" in entry]
    info = json.loads((folder / "gradkit_run.json").read_text()) if (folder / "gradkit_run.json").exists() else {}
    return folder, {"logs": logs, "margin_temperature": info.get("margin_temperature")}


def run_seed(seed: int, data: Path, output: Path, arms: list[str]) -> None:
    """Run every arm of a seed whose result is not there yet."""
    world = output / f"seed{seed}"
    begin = time.perf_counter()
    make_world(seed, data, world)
    if not (world / "world.json").exists():
        scores = {name: json.loads((world / "scores" / name / "scores.json").read_text())
                  for name in ("in_sample", "cross_fitted", "held_out")}  # fmt: skip
        history = json.loads((world / "policy" / "trainer_state.json").read_text())["log_history"]
        evaluations = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
        seconds = round(time.perf_counter() - begin, 1)
        write_json(world / "world.json", {"scores": scores, "sft_eval_losses": evaluations, "seconds": seconds})
    held_out = read_rows(data / "held_out.jsonl")
    trained_on = read_rows(data / "train.jsonl")[:400]
    reference = {"held_out": log_probs(world / "policy", held_out), "train": log_probs(world / "policy", trained_on)}
    for arm in arms:
        path = world / f"{arm}.json"
        if path.exists():
            continue
        begin = time.perf_counter()
        folder, result = train(arm, seed, world)
        for name, pairs in (("held_out", held_out), ("train", trained_on)):
            result[name] = measure(folder, reference[name], pairs)
        write_json(path, {**result, "seconds": round(time.perf_counter() - begin, 1)})


def write_json(path: Path, value) -> None:
    """Write JSON under a temporary name first, so that an interrupted run leaves no half a file."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value))
    os.replace(temporary, path)


def main() -> None:
    """Run the seeds that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="hh_harmless.jsonl.gz")
    parser.add_argument("--output", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    make_data(args.data, args.output / "data")
    for seed in args.seeds:
        run_seed(seed, args.output / "data", args.output, args.arms)


if __name__ == "__main__":
    main()
