"""What watching gradients costs: TRL's DPO step with and without EntanglementCallback, and the published way.

    python benchmarks/gradient_cost.py                              # 20M parameters, 8 rows of up to 256 tokens
    python benchmarks/gradient_cost.py --lora
    python benchmarks/gradient_cost.py --hidden 1024 --layers 12 --length 512 --device cuda --bf16

Trainers take turns, one optimizer step each (see paired.py); the reference forward is part of every step. Arms:

    trl, trl again    TRL's DPOTrainer, twice: the second shows the noise
    every step        pair figures at every step, exact, over all trainable parameters, output head included
    every 10 steps    the same, every tenth step
    gram              the whole Gram matrix at every step (direction="step")
    row by row        a forward and a backward for each row, batch size 1, as the paper's analysis does
"""

import argparse
import tempfile
from pathlib import Path

import torch
import trl
from paired import measure, profile, quiet
from peft import LoraConfig
from step_time import make_data, make_model

from hf_gradkit import EntanglementCallback

ARMS = ("trl", "trl again", "every step", "every 10", "gram", "row by row")


class RowByRow(trl.DPOTrainer):
    """TRL's trainer, which takes each row's gradient by itself before every step."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        squares = []
        for row in range(len(labels)):
            one = {name: inputs[name][[row]] for name in ("input_ids", "attention_mask")}
            model(**one, labels=labels[[row]], fused_lm_head=True, use_cache=False).log_probs.sum().backward()
            grads = [p.grad for p in model.parameters() if p.grad is not None]
            squares.append(torch.stack([g.square().sum() for g in grads]).sum())
            model.zero_grad()
        return super().training_step(model, inputs, num_items_in_batch)


def make_trainer(arm: str, options: argparse.Namespace, folder: str, callbacks: list) -> trl.DPOTrainer:
    """Return the trainer of an arm; all have the same model, data and order."""
    options.trainer = "dpo"
    dataset, tokenizer = make_data(options)
    path = f"{folder}/policy"
    if not Path(path).exists():
        make_model(options, tokenizer).save_pretrained(path)
    args = trl.DPOConfig(
        output_dir=f"{folder}/{arm}",
        max_steps=options.steps + 2,
        per_device_train_batch_size=options.batch,
        logging_steps=1,
        optim="sgd",
        max_length=options.length,
        use_cpu=options.device == "cpu",
        bf16=options.bf16,
        activation_checkpointing=options.checkpointing,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    watching = {
        "every step": lambda: EntanglementCallback(),
        "every 10": lambda: EntanglementCallback(monitor_steps=10),
        "gram": lambda: EntanglementCallback(direction="step"),
    }
    trainer = (RowByRow if arm == "row by row" else trl.DPOTrainer)(
        model=path,
        args=args,
        train_dataset=dataset,
        processing_class=tokenizer,
        callbacks=callbacks,
        peft_config=LoraConfig(r=16, target_modules="all-linear") if options.lora else None,
    )
    if arm in watching:
        # Before the clock, which ends the step: what the monitor does at the end of it is timed as well.
        trainer.callback_handler.callbacks.insert(0, watching[arm]())
    return trainer


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--steps", type=int, default=30, help="rounds that are timed")
    parser.add_argument("--memory_rounds", type=int, default=2, help="processes an arm for peak memory; 0 for none")
    parser.add_argument("--batch", type=int, default=4, help="pairs; twice as many rows")
    parser.add_argument("--length", type=int, default=256, help="longest row, in tokens")
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--lora", action="store_true", help="train LoRA adapters of rank 16")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch on the CPU")
    parser.add_argument("--profile", choices=ARMS, help="only profile this arm, on the CPU")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        if options.profile:
            profile(make_trainer, options.profile, options, folder)
        else:
            measure(make_trainer, ["trl", *(arm for arm in options.arms if arm != "trl")], options, folder)


if __name__ == "__main__":
    main()
