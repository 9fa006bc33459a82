"""The paper's toy: linear regression in which most examples are redundant and soon have a low loss.

python toy_regression.py --output OUT            runs
python toy_regression.py --output OUT --summary FOLDER
"""

import statistics
from collections import defaultdict
from pathlib import Path

import torch
from common import PLAIN, arguments, first_step_at, load_all, mean_and_interval, run_all, show, verdict, write_json
from datasets import Dataset
from transformers import PretrainedConfig, TrainerCallback

from hf_gradkit import Trainer, TrainingArguments

DIMENSIONS, PROTOTYPES, EXAMPLES, REDUNDANT, NOISE = 50, 5, 2000, 0.9, 0.1
BATCH, TARGET = 64, 0.05
LEARNING_RATE = {"sgd": 0.05, "adamw": 0.01}
WEIGHTINGS = {
    "uniform": None,
    "uniform_lr2": None,
    "linupper_r1": {"method": "linupper", "temperature": 1.0},
    "linupper_r04": {"method": "linupper", "temperature": 0.4},
    "linupper_r04_micro": {"method": "linupper", "temperature": 0.4, "scope": "micro_batch"},
    "linupper_r04_q95": {"method": "linupper", "temperature": 0.4, "high_quantile": 0.95},
    "quadratic_r04": {"method": "quadratic", "temperature": 0.4},
    "extremes_r04": {"method": "extremes", "temperature": 0.4},
}
# The comparisons of the hypotheses in which neither side is uniform.
BETWEEN_ARMS = [
    ("linupper_r1", "uniform_lr2"),
    ("linupper_r04", "uniform_lr2"),
    ("quadratic_r04", "linupper_r04"),
    ("extremes_r04", "linupper_r04"),
]
ARMS = {f"{optimizer}-{name}": (optimizer, name) for optimizer in LEARNING_RATE for name in WEIGHTINGS}


class Regression(torch.nn.Module):
    """One linear map without an offset, from zero."""

    def __init__(self):
        super().__init__()
        self.config = PretrainedConfig()  # the trainer notes the model's name for its reports
        self.weight = torch.nn.Parameter(torch.zeros(DIMENSIONS))

    def forward(self, x, y):
        prediction = x @ self.weight
        return {"loss": 0.5 * (prediction - y).square().mean(), "prediction": prediction}


class TestLoss(TrainerCallback):
    """Measures the loss on held-out inputs without noise after every step."""

    def __init__(self, truth: torch.Tensor, inputs: torch.Tensor):
        self.truth, self.inputs, self.curve = truth, inputs, []

    def measure(self, step: int, model: Regression) -> None:
        with torch.no_grad():
            error = self.inputs @ (model.weight - self.truth)
        self.curve.append([step, 0.5 * float(error.square().mean())])

    def on_train_begin(self, args, state, control, model=None, **keywords):
        self.measure(0, model)

    def on_step_end(self, args, state, control, model=None, **keywords):
        self.measure(state.global_step, model)


def make_data(seed: int) -> tuple[Dataset, torch.Tensor, torch.Tensor]:
    """Return training data, the true weights and test inputs.

    9 of 10 training examples repeat one of 5 prototypes; the others are drawn in all directions, as the test is.
    """
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(DIMENSIONS, generator=generator)
    prototypes = torch.randn(PROTOTYPES, DIMENSIONS, generator=generator)
    x = torch.randn(EXAMPLES, DIMENSIONS, generator=generator)
    y = x @ truth + NOISE * torch.randn(EXAMPLES, generator=generator)
    copies = int(REDUNDANT * EXAMPLES)
    x[:copies] = prototypes[torch.arange(copies) % PROTOTYPES]
    y[:copies] = x[:copies] @ truth
    order = torch.randperm(EXAMPLES, generator=generator)
    test = torch.randn(2000, DIMENSIONS, generator=generator)
    return Dataset.from_dict({"x": x[order].tolist(), "y": y[order].tolist()}), truth, test


def options(name: str) -> dict:
    """Return the training arguments that an arm adds."""
    chosen = dict(WEIGHTINGS[name] or {})
    return {"weighting": chosen.pop("method"), "weighting_kwargs": chosen} if chosen else {}


def run(seed: int, arm: str, steps: int, folder: Path) -> dict:
    """Train one arm and return its test loss after every step."""
    optimizer, name = ARMS[arm]
    data, truth, test = make_data(seed)
    args = TrainingArguments(
        output_dir=str(folder / "trainer"),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        dataloader_drop_last=True,
        learning_rate=LEARNING_RATE[optimizer] * (2 if name == "uniform_lr2" else 1),
        lr_scheduler_type="constant",
        optim={"sgd": "sgd", "adamw": "adamw_torch"}[optimizer],
        max_grad_norm=0.0,
        seed=seed,
        logging_strategy="no",
        **options(name),
        **PLAIN,
    )
    measured = TestLoss(truth, test)
    Trainer(
        model=Regression(),
        args=args,
        train_dataset=data,
        callbacks=[measured],
        per_example_loss=lambda outputs, inputs: 0.5 * (outputs["prediction"] - inputs["y"]).square(),
    ).train()
    return {"curve": measured.curve}


def summarise(results: dict, folder: Path) -> None:
    """Print and write the steps to the target, and draw the curves."""
    rows = {}
    for optimizer in LEARNING_RATE:
        by_name = {name: results[f"{optimizer}-{name}"] for name in WEIGHTINGS}
        steps = {name: _steps(of_seed) for name, of_seed in by_name.items()}
        print(f"\n{optimizer}: steps to {TARGET:.0%} of the initial test loss; difference to uniform, 95 % interval")
        for name, of_seed in steps.items():
            reached = sum(ok for _, ok in of_seed.values())
            difference = mean_and_interval([of_seed[s][0] - steps["uniform"][s][0] for s in of_seed])
            ratio = statistics.fmean(of_seed[s][0] / steps["uniform"][s][0] for s in of_seed)
            final = mean_and_interval([r["curve"][-1][1] for r in by_name[name].values()])
            rows[f"{optimizer}-{name}"] = {
                "steps": {s: round(v[0], 1) for s, v in of_seed.items()},
                "reached": reached,
                "difference": difference,
                "ratio": ratio,
                "step_50_difference": max(
                    abs(r["curve"][50][1] - by_name["uniform"][s]["curve"][50][1]) for s, r in by_name[name].items()
                ),
                "final_test_loss": {s: r["curve"][-1][1] for s, r in by_name[name].items()},
            }
            word = "" if name == "uniform" else verdict(difference)
            mean_steps = statistics.fmean(v[0] for v in of_seed.values())
            print(
                f"  {name:20} {mean_steps:7.1f} ({reached}/{len(of_seed)} reached)"
                f"  {show(difference, 1):28} x{ratio:.2f}  final loss {final['mean']:.4f}  {word}"
            )
        rows[f"{optimizer}-between_arms"] = {}
        for name, other in BETWEEN_ARMS:
            difference = mean_and_interval([steps[name][s][0] - steps[other][s][0] for s in steps[name]])
            rows[f"{optimizer}-between_arms"][f"{name} - {other}"] = difference
            print(f"  {name} - {other}: {show(difference, 1)}")
    write_json(folder / "toy_regression.json", rows)
    _draw(results, folder / "toy_regression.png")


def _steps(of_seed: dict[int, dict]) -> dict[int, tuple[float, bool]]:
    return {seed: first_step_at(r["curve"], TARGET * r["curve"][0][1]) for seed, r in of_seed.items()}


def _draw(results: dict, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    for axis, optimizer in zip(axes, LEARNING_RATE, strict=True):
        for name in WEIGHTINGS:
            at_step = defaultdict(list)
            for result in results[f"{optimizer}-{name}"].values():
                for step, loss in result["curve"][::10]:
                    at_step[step].append(loss / result["curve"][0][1])
            style = "k-" if name == "uniform" else "k:" if name == "uniform_lr2" else "-"
            axis.plot(list(at_step), [statistics.fmean(v) for v in at_step.values()], style, label=name, lw=1.2)
        axis.axhline(TARGET, color="grey", lw=0.6)
        axis.set(title=optimizer, xlabel="step", yscale="log")
    axes[0].set_ylabel("test loss / initial (mean of seeds)")
    axes[1].legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main() -> None:
    torch.set_num_threads(1)
    args = arguments(__doc__, steps=1000)
    if args.summary:
        summarise(load_all(args.output, args.seeds, ARMS), args.summary)
    else:
        run_all(args.output, args.seeds, ARMS, lambda seed, arm: run(seed, arm, args.steps, args.output))


if __name__ == "__main__":
    main()
