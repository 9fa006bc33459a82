"""The arms of the study: what each sets, the four settings it may choose from, and one training run."""

import time
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from measure import Measure
from transformers import TrainerCallback
from world import PLAIN, World, load_policy, load_tokenizer

from hf_gradkit import DPOConfig, DPOTrainer

QUALITIES = ("high", "medium", "low")
TUNING_SEED = 100
SEEDS = (0, 1, 2, 3, 4)
STEPS, LONG_STEPS, RATE = 120, 240, 1e-3
# Steps at which a run of the comparison is measured; step 0 is the reference policy.
CHECKPOINTS = (0, 10, 20, 40, 80, STEPS)
LONG_CHECKPOINTS = (0, 20, 40, 80, 120, 180, LONG_STEPS)
SAMPLES, CHECKPOINT_SAMPLES = 16, 8  # completions of each of 24 prompts, at the last step and before it

_FOUR_BETAS = [0.05, 0.1, 0.2, 0.4]
_TWO_BETAS = [0.1, 0.4]


@dataclass(frozen=True)
class Arm:
    """One method.

    Attributes:
        settings: the options of `DPOConfig` that tuning chooses among.
        margin: the pairs' column that is the reward margin, for MADPO.
    """

    settings: list[dict]
    margin: str | None = None


def _objective(name: str, options: list[dict]) -> Arm:
    return Arm([{"beta": b, "loss_type": [name], "loss_kwargs": {name: o}} for b in _TWO_BETAS for o in options])


def _madpo(margin: str, calibrate: bool) -> Arm:
    # The paper's best values, and the defaults of its authors' class.
    options = [{"c_max": 4.0, "tau": 6.907}, {"c_max": 2.0, "tau": 2.0}]
    return Arm(
        [
            {"beta": b, "weighting": "madpo", "weighting_kwargs": {**o, "calibrate": calibrate}}
            for b in _TWO_BETAS
            for o in options
        ],
        margin,
    )


ARMS = {
    "dpo": Arm([{"beta": b} for b in _FOUR_BETAS]),
    "ipo": Arm([{"beta": b, "loss_type": ["ipo"]} for b in _FOUR_BETAS]),
    "beta_dpo": _objective("beta_dpo", [{"alpha": 0.6}, {"alpha": 0.3}]),
    "rpo": _objective("rpo", [{"eta": 0.005, "normalization": "sum"}, {"eta": 0.05, "normalization": "sum"}]),
    "madpo_raw": _madpo("in_sample", False),
    "madpo_calibrated": _madpo("in_sample", True),
    "madpo_cross_fitted": _madpo("cross_fitted", True),
    # The labels have temperature 1, so the true margin is the true logit.
    "madpo_oracle": _madpo("true_margin", False),
}
# The second experiment: one beta, no choice, twice the steps, on one quality.
LONG_QUALITIES = ("medium",)
LONG_ARMS = {
    "dpo": {"beta": 0.1},
    "rpo_0.005": {"beta": 0.1, "loss_type": ["rpo"], "loss_kwargs": {"rpo": {"eta": 0.005, "normalization": "sum"}}},
    "rpo_0.05": {"beta": 0.1, "loss_type": ["rpo"], "loss_kwargs": {"rpo": {"eta": 0.05, "normalization": "sum"}}},
}
# Not part of the plan, added when its results were known: settings that tuning did not choose, by their number.
AFTER = (("dpo", 1), ("dpo", 2), ("madpo_cross_fitted", 2))


class _Curve(TrainerCallback):
    """Measures the policy at some steps."""

    def __init__(self, measure: Measure, steps: tuple[int, ...], last: int):
        self.measure, self.steps, self.last, self.points = measure, steps, last, []

    def take(self, step: int, model) -> None:
        samples = SAMPLES if step == self.last else CHECKPOINT_SAMPLES
        self.points.append({"step": step, **self.measure(model, samples)})

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step in self.steps:
            self.take(state.global_step, model)


def train(
    world: World,
    setting: dict,
    margin: str | None,
    seed: int,
    split: str,
    steps: int,
    checkpoints: tuple[int, ...],
    scratch: Path,
) -> dict:
    """Train the reference policy of a world on its pairs and return what was measured at the checkpoints."""
    begin = time.perf_counter()
    columns = ["prompt", "chosen", "rejected"]
    rows = [{key: pair[key] for key in columns} for pair in world.pairs]
    if margin:
        rows = [{**row, "reward_margin": pair[margin]} for row, pair in zip(rows, world.pairs, strict=True)]
    args = DPOConfig(
        output_dir=str(scratch), max_steps=steps, learning_rate=RATE, lr_scheduler_type="constant_with_warmup",
        warmup_steps=10, precompute_ref_log_probs=True, seed=seed, **setting, **PLAIN,
    )  # fmt: skip
    curve = _Curve(Measure(world, split), checkpoints, steps)
    model = load_policy(world.policy)
    if 0 in checkpoints:
        curve.take(0, model)
    trainer = DPOTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=load_tokenizer(world.policy),
        callbacks=[curve],
    )
    trainer.train()
    logs = [row for row in trainer.state.log_history if "loss" in row]
    return {
        "setting": setting,
        "curve": curve.points,
        "log": [logs[0], logs[-1]],
        "seconds": round(time.perf_counter() - begin, 1),
    }
