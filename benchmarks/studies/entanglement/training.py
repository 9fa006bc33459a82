"""The arms of the study, and one training run."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from worlds import World

from hf_gradkit import DPOConfig, DPOTrainer, EntanglementCallback

BETA = 0.1
WATCH = 5  # of the main runs, every so many steps
# Mean length of the answers in tokens, end token included, which the losses of length-normalised log-probs need.
LENGTHS = {"synthetic": 8.7, "hh": 33.6}


@dataclass(frozen=True)
class Plan:
    """How long and how fast a kind of run trains.

    Attributes:
        steps, batch: optimizer steps, and pairs in each.
        rate: learning rate.
        warmup: steps of it.
        measured: at how many steps, equally far apart, log-probs of the pairs are measured, the start apart.
        pairs: of the training and of the held-out pairs, those that are measured.
    """

    steps: int
    batch: int
    rate: float
    warmup: int
    measured: int
    pairs: tuple[int, int]


PLANS = {
    "synthetic": Plan(60, 32, 1e-3, 5, 3, (128, 128)),
    "hh": Plan(32, 16, 2e-4, 5, 2, (64, 128)),
    "shared": Plan(30, 32, 1e-3, 5, 1, (128, 128)),
}
# The check of the prediction: optimizers and learning rates, with no choice among them.
CHECKS = {
    f"{optimizer} {rate:g}": {"optim": name, "learning_rate": rate}
    for optimizer, name, rates in (("sgd", "sgd", (1e-3, 1e-2, 1e-1)), ("adamw", "adamw_torch", (1e-5, 1e-4, 1e-3)))
    for rate in rates
}
CHECK_STEPS = 10


def arms(world: str) -> dict[str, dict]:
    """Return each arm's options of `DPOConfig`; IPO and sigmoid_norm work on means over tokens."""
    length = LENGTHS[world]
    return {
        "dpo": {},
        "ipo": {"loss_type": ["ipo"], "beta": length / 40},  # aims at 20 nats for a pair of mean length
        "sigmoid_norm": {"loss_type": ["sigmoid_norm"], "beta": BETA * length},
        "rpo": {"loss_type": ["rpo"], "loss_kwargs": {"rpo": {"normalization": "average"}}},
        "madpo": {"weighting": "madpo"},
        "balancing_pair": {"gradient_balancing": "pair"},
        "balancing_batch": {"gradient_balancing": "batch", "monitor_steps": WATCH},
    }


class _Written(TrainerCallback):
    """Measures what the policy writes, where the truth is known, whenever log-probs are measured."""

    def __init__(self, measure, every: int):
        self.measure, self.every, self.points = measure, every, {}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if self.measure is not None and state.global_step % self.every == 0:
            samples = 16 if state.global_step == state.max_steps else 8
            figures = self.measure(model, samples)
            self.points[state.global_step] = {name: figures[name] for name in ("true", "kl", "train_accuracy")}
            self.points[state.global_step]["held_out_true_accuracy"] = figures["held_out_accuracy"]


def train(world: World, plan: Plan, options: dict, seed: int, scratch: Path) -> dict:
    """Train a policy and return its curve of log-probs, and what the monitor said at each watched step."""
    every = plan.steps // plan.measured
    args = _arguments(
        plan, seed, scratch, max_steps=plan.steps, learning_rate=plan.rate, warmup_steps=plan.warmup,
        eval_strategy="steps", eval_steps=every, eval_on_start=True, **options,
    )  # fmt: skip
    evaluated = {"train": world.train[: plan.pairs[0]], "held_out": world.held_out[: plan.pairs[1]]}
    written = _Written(world.measure, every)
    monitor = EntanglementCallback(monitor_steps=WATCH, direction="step", observe=True)
    rows = world.train[: plan.steps * plan.batch]
    history, watched, seconds = _run(world, rows, evaluated, args, [written, monitor])
    return {"curve": _curve(history, written.points), "watched": watched, "seconds": seconds}


def check(world: World, plan: Plan, options: dict, seed: int, scratch: Path) -> dict:
    """Compare the predicted with the observed signs at every step of a short DPO run."""
    args = _arguments(plan, seed, scratch, max_steps=CHECK_STEPS, lr_scheduler_type="constant", **options)
    rows = world.train[: CHECK_STEPS * plan.batch]
    _, watched, seconds = _run(world, rows, None, args, [EntanglementCallback(direction="step", observe=True)])
    return {"watched": watched, "seconds": seconds}


def _arguments(plan: Plan, seed: int, scratch: Path, **options) -> DPOConfig:
    plain = {
        "beta": BETA, "lr_scheduler_type": "constant_with_warmup", "precompute_ref_log_probs": True,
        "precompute_ref_batch_size": 16, "per_device_train_batch_size": plan.batch, "per_device_eval_batch_size": 16,
        "max_length": 256, "weight_decay": 0.0, "use_cpu": True, "bf16": False, "activation_checkpointing": False,
        "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "dataloader_pin_memory": False,
        "logging_steps": 10,
    }  # fmt: skip
    return DPOConfig(output_dir=str(scratch), seed=seed, **{**plain, **options})


def _run(world: World, rows: list[dict], evaluated: dict | None, args: DPOConfig, callbacks: list):
    """Train, and return the log history, the monitor's lines and the seconds of processor time."""
    begin = time.process_time()
    (Path(args.output_dir) / "entanglement.jsonl").unlink(missing_ok=True)
    uses_margin = args.weighting == "madpo"
    names = [name for name in rows[0] if uses_margin or name != "reward_margin"]
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(world.policy),
        args=args,
        train_dataset=Dataset.from_list(rows).select_columns(names),
        eval_dataset={name: Dataset.from_list(part) for name, part in evaluated.items()} if evaluated else None,
        processing_class=AutoTokenizer.from_pretrained(world.policy),
        callbacks=callbacks,
    )
    trainer.train()
    lines = (Path(args.output_dir) / "entanglement.jsonl").read_text().splitlines()
    return trainer.state.log_history, [json.loads(line) for line in lines], round(time.process_time() - begin, 1)


def _curve(history: list[dict], points: dict[int, dict]) -> list[dict]:
    """Return one point a measured step: log-probs minus those of the start, in nats, and the rest."""
    steps = {}
    for entry in history:
        # An evaluation's entry names its data set in the loss only.
        part = next((part for part in ("train", "held_out") if f"eval_{part}_loss" in entry), None)
        if part is not None:
            values = steps.setdefault(entry["step"], {})
            values |= {f"{part}_{side}": entry[f"eval_logps/{side}"] for side in ("chosen", "rejected")}
            values[f"{part}_order"] = entry["eval_rewards/accuracies"]
    start = steps[0]
    curve = []
    for step, values in sorted(steps.items()):
        point = {"step": step, **points.get(step, {})}
        for part in ("train", "held_out"):
            drift = {side: values[f"{part}_{side}"] - start[f"{part}_{side}"] for side in ("chosen", "rejected")}
            point |= {f"{part}_{side}": value for side, value in drift.items()}
            point[f"{part}_margin"] = drift["chosen"] - drift["rejected"]
            point[f"{part}_order"] = values[f"{part}_order"]
        curve.append(point)
    return curve
