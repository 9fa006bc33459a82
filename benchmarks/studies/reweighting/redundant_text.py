"""Redundant text: a small language model on plain text in which half of the examples repeat the same eight.

python redundant_text.py --data DATA --output OUT            runs
python redundant_text.py --data DATA --output OUT --summary FOLDER
"""

import statistics
from pathlib import Path

import torch
from common import (
    PLAIN,
    arguments,
    first_step_at,
    load_all,
    mean_and_interval,
    paired,
    read_text,
    run_all,
    show,
    verdict,
    write_json,
)
from datasets import Dataset
from transformers import default_data_collator

from hf_gradkit import Trainer, TrainingArguments
from hf_gradkit.data.tiny import tiny_llama, train_tokenizer

VOCABULARY, LENGTH, BATCH, LEARNING_RATE = 512, 64, 16, 2e-3
CLEAN, COPIES, REPEATED, VALIDATION = 8000, 8000, 8, 192
R1, R04 = {"temperature": 1.0}, {"temperature": 0.4}
# arm: (is half of the training set redundant?, options of LinUpper or None for uniform)
ARMS = {
    "redundant-uniform": (True, None),
    "redundant-linupper_r1": (True, R1),
    "redundant-linupper_r04": (True, R04),
    "redundant-linupper_r04_micro": (True, {**R04, "scope": "micro_batch"}),
    "clean-uniform": (False, None),
    "clean-linupper_r04": (False, R04),
}


def chunks(folder: Path):
    """Return the tokenizer, and the rows of the training text and of the validation text. (rows, LENGTH)"""
    text = read_text(folder / "tinyshakespeare.txt.gz")
    cut = int(0.9 * len(text))
    tokenizer = train_tokenizer([text[i : i + 1000] for i in range(0, cut, 1000)], VOCABULARY)

    def rows(part: str) -> torch.Tensor:
        ids = torch.tensor(tokenizer(part)["input_ids"])
        return ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)

    return tokenizer, rows(text[:cut]), rows(text[cut:])


def make_data(rows: torch.Tensor, redundant: bool, seed: int) -> Dataset:
    """Return the clean rows of a seed, with as many copies of eight other rows among them where asked."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    useful, repeated = rows[order[:CLEAN]], rows[order[CLEAN : CLEAN + REPEATED]]
    groups = ["clean"] * CLEAN
    if redundant:
        useful = torch.cat([useful, repeated[torch.arange(COPIES) % REPEATED]])
        groups += ["redundant"] * COPIES
    return Dataset.from_dict({"input_ids": useful.tolist(), "labels": useful.tolist(), "group": groups})


def run(seed: int, arm: str, steps: int, data: Path, folder: Path) -> dict:
    """Train one arm and return its validation loss on clean text, and its training log."""
    redundant, linupper = ARMS[arm]
    tokenizer, rows, held_out = chunks(data)
    # The same rows of the validation text for all seeds, spread over it.
    held_out = held_out[torch.linspace(0, len(held_out) - 1, VALIDATION).long()]
    model = tiny_llama(tokenizer, hidden_size=64, layers=2, max_length=LENGTH, seed=seed)
    weighting = {"weighting": "linupper", "weighting_kwargs": linupper} if linupper else {}
    args = TrainingArguments(
        output_dir=str(folder / "trainer"),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=64,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=50,
        weight_decay=0.01,
        max_grad_norm=1.0,
        eval_strategy="steps",
        eval_steps=25,
        prediction_loss_only=True,
        logging_steps=25,
        seed=seed,
        group_column="group",
        **weighting,
        **PLAIN,
    )
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=make_data(rows, redundant, seed),
        eval_dataset=Dataset.from_dict({"input_ids": held_out.tolist(), "labels": held_out.tolist()}),
        data_collator=default_data_collator,
    )
    start = trainer.evaluate()["eval_loss"]
    trainer.train()
    logs = trainer.state.log_history
    curve = [[0, start], *([row["step"], row["eval_loss"]] for row in logs if "eval_loss" in row and row["step"])]
    return {"curve": curve, "log": [row for row in logs if "loss" in row]}


def summarise(results: dict, folder: Path) -> None:
    """Print and write the final losses and the steps to uniform's, and draw the differences."""
    rows = {}
    for arm, of_seed in results.items():
        baseline = results[arm.split("-")[0] + "-uniform"]
        final = {seed: r["curve"][-1][1] for seed, r in of_seed.items()}
        targets = {seed: baseline[seed]["curve"][-1][1] for seed in of_seed}
        steps = {seed: first_step_at(r["curve"], targets[seed]) for seed, r in of_seed.items()}
        own = {seed: first_step_at(baseline[seed]["curve"], targets[seed])[0] for seed in of_seed}
        rows[arm] = {
            "final_loss": final,
            "difference": paired(final, targets),
            "steps": {seed: round(value[0], 1) for seed, value in steps.items()},
            "reached": sum(value[1] for value in steps.values()),
            "steps_difference": paired({seed: value[0] for seed, value in steps.items()}, own),
            "warmup_difference": max(abs(r["curve"][1][1] - baseline[s]["curve"][1][1]) for s, r in of_seed.items()),
            "group_figures": _group_figures(of_seed),
        }
        row = rows[arm]
        word = "" if arm.endswith("uniform") else verdict(row["difference"])
        print(
            f"{arm:30} final {statistics.fmean(final.values()):.4f}  {show(row['difference'])}  {word}\n"
            f"{'':30} steps {statistics.fmean(row['steps'].values()):.0f} ({row['reached']}/{len(steps)} reached)  "
            f"{show(row['steps_difference'], 0)}  {row['group_figures']}"
        )
    bound = paired(rows["clean-uniform"]["final_loss"], rows["redundant-uniform"]["final_loss"])
    print(f"what the redundancy costs: clean-uniform - redundant-uniform  {show(bound)}")
    rows["clean_minus_redundant_uniform"] = bound
    write_json(folder / "redundant_text.json", rows)
    _draw(results, folder / "redundant_text.png")


def _group_figures(of_seed: dict[int, dict]) -> dict[str, float]:
    """Return the mean loss and weight of each group in the last log, over the seeds."""
    last = [r["log"][-1] for r in of_seed.values()]
    keys = [key for key in last[0] if "clean" in key or "redundant" in key or key.startswith("weights/")]
    return {key: round(statistics.fmean(row[key] for row in last), 3) for key in keys}


def _draw(results: dict, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    for arm, of_seed in results.items():
        baseline = results[arm.split("-")[0] + "-uniform"]
        curves = [r["curve"] for r in of_seed.values()]
        steps = [point[0] for point in curves[0]]
        style = "--" if arm.startswith("clean") else "-"
        axes[0].plot(steps, [statistics.fmean(c[i][1] for c in curves) for i in range(len(steps))], style, label=arm)
        if arm.endswith("uniform"):
            continue
        differences = [
            mean_and_interval([r["curve"][i][1] - baseline[s]["curve"][i][1] for s, r in of_seed.items()])
            for i in range(len(steps))
        ]
        line = axes[1].plot(steps, [d["mean"] for d in differences], style, label=arm)[0]
        bounds = [d["low"] for d in differences], [d["high"] for d in differences]
        axes[1].fill_between(steps, *bounds, color=line.get_color(), alpha=0.15)
    axes[0].set(xlabel="step", ylabel="validation loss (clean text)", ylim=(None, 5.5))
    axes[1].axhline(0, color="grey", lw=0.6)
    axes[1].set(xlabel="step", ylabel="difference to uniform, 95 % interval")
    axes[0].legend(fontsize=6)
    axes[1].legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main() -> None:
    torch.set_num_threads(1)
    args = arguments(__doc__, data=None, steps=800)
    if args.summary:
        summarise(load_all(args.output, args.seeds, ARMS), args.summary)
    else:
        run_all(args.output, args.seeds, ARMS, lambda seed, arm: run(seed, arm, args.steps, args.data, args.output))


if __name__ == "__main__":
    main()
