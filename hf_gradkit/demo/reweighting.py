"""The reweighting chapter: the same fine-tuning uniformly and with LinUpper, source by source."""

from pathlib import Path

import datasets
import torch

from ..reporting.figures import group_figure, require_matplotlib
from ..reporting.runs import Run, read_run
from ..trainers.config import SFTConfig
from ..trainers.sft_trainer import SFTTrainer
from .material import prepare
from .progress import one_bar, train

STEPS = 400
ARMS = {"uniform": {}, "linupper": {"weighting": "linupper"}}
CODE = """\
    from hf_gradkit import SFTConfig, SFTTrainer        # was: from trl import ...
    args = SFTConfig("out", weighting="linupper", group_column="source")
    SFTTrainer("model", args=args, train_dataset=dataset).train()"""


def run(folder: Path) -> None:
    """Train both arms in `folder`, draw the picture, and say what was seen."""
    require_matplotlib()
    one_bar()
    torch.set_num_threads(1)  # matrices this small lose more to handing work over than they gain
    print(f"Making a tokenizer, a tiny Llama and instruction data of three sources in {folder}/ ...")
    prepare(folder)
    for name, options in ARMS.items():
        print(f"\nFine-tuning: {name} ({STEPS} steps)")
        _train(folder, name, options)
    runs = [read_run(folder / name) for name in ARMS]
    picture = folder / "reweighting.png"
    group_figure(runs).savefig(picture, dpi=130)
    print(summary(*runs))
    print(f"\nThe lines that did it:\n\n{CODE}\n")
    print(f"Picture: {picture}   (loss and weight of each source over training)")
    print(f"Next:    gradkit report {folder / 'uniform'} {folder / 'linupper'}")
    print("         gradkit sft --config <your.yaml>        (gradkit recipes lists some to start from)")


def _train(folder: Path, name: str, options: dict) -> None:
    data = {split: str(folder / "data" / f"{split}.jsonl") for split in ("train", "test")}
    dataset = datasets.load_dataset("json", data_files=data)
    args = SFTConfig(
        output_dir=str(folder / name),
        max_steps=STEPS,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=50,
        learning_rate=3e-3,
        logging_steps=10,
        eval_strategy="steps",
        eval_steps=20,
        save_strategy="no",
        group_column="source",
        report_to="none",
        bf16=False,
        use_cpu=True,
        activation_checkpointing=False,
        **options,
    )
    trainer = SFTTrainer(
        str(folder / "model"), args=args, train_dataset=dataset["train"], eval_dataset=dataset["test"]
    )
    train(trainer)
    trainer.save_model()


def summary(uniform: Run, linupper: Run) -> str:
    """Return what the two runs show, in a few lines and without claiming more than they do."""
    target = uniform.last("eval_loss")
    reached = linupper.steps_to("eval_loss", target)
    lines = [
        "",
        f"{'source':<12}{'loss':>18}{'weight':>18}      (last logs; loss: uniform, linupper)",
    ]
    for name in uniform.groups():
        losses = f"{uniform.last(f'group_loss/{name}'):.3f} {linupper.last(f'group_loss/{name}'):.3f}"
        weight = f"{uniform.last(f'group_weight/{name}'):.2f} {linupper.last(f'group_weight/{name}'):.2f}"
        lines.append(f"{name:<12}{losses:>18}{weight:>18}")
    weights = {name: linupper.last(f"group_weight/{name}") for name in linupper.groups()}
    most, least = max(weights, key=weights.get), min(weights, key=weights.get)
    lines += [
        "",
        f"LinUpper ended with most weight on {most!r} and least on {least!r}. It takes weight from what is learned,",
        "and cannot tell what is hard from what is noise: that is what the group figures are for.",
        f"effective sample size with LinUpper: {linupper.last('weights/ess'):.0%} of the compared examples",
        f"validation loss after {STEPS} steps: uniform {target:.4f}, linupper {linupper.last('eval_loss'):.4f}",
        (
            f"LinUpper reached uniform's final validation loss after {reached} of {STEPS} steps."
            if reached is not None
            else f"LinUpper did not reach uniform's final validation loss within {STEPS} steps."
        ),
        "(One seed, one tiny model: a demonstration. docs/results/reweighting.md has several seeds and intervals.)",
    ]
    return "\n".join(lines)
