"""Experiment 2: a tiny Llama fine-tuned on a part of gsm8k, chosen by EL2N, GraNd, perplexity or at random.

python pruning.py --data DATA --output OUT         runs what is not there yet
python pruning.py --data DATA --output OUT --summary FOLDER

DATA holds gsm8k_train.jsonl.gz, gsm8k_test.jsonl.gz and tinyshakespeare.txt.gz.
"""

from pathlib import Path

import torch
from arms import use
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

use("reweighting")
from common import (  # noqa: E402
    PLAIN,
    arguments,
    load_all,
    mean_and_interval,
    paired,
    run_all,
    show,
    verdict,
    write_json,
)
from gsm8k import BATCH, LONGEST, RATE, completion_losses, pretrain, read_rows  # noqa: E402

from hf_gradkit import SFTConfig, SFTTrainer  # noqa: E402
from hf_gradkit.selection import build_selector  # noqa: E402

ROWS, STEPS, PRETRAINING_STEPS = 3000, 375, 400
SCORING_STEPS, SCORING_RUNS = 60, 2
FRACTIONS = [0.3, 0.5, 0.7]
SELECTORS = ("random", "perplexity", "el2n", "grand")
ARMS = ["full", *(f"{by}-{fraction}" for fraction in FRACTIONS for by in SELECTORS)]


def fine_tune(base: Path, dataset: Dataset, seed: int, steps: int, folder: Path):
    """Fine-tune the base model and return it with its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    args = SFTConfig(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=BATCH, learning_rate=RATE,
        lr_scheduler_type="cosine", warmup_steps=0.05, weight_decay=0.01, max_length=LONGEST,
        gradient_checkpointing=False, logging_steps=25, seed=seed, **PLAIN,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    SFTTrainer(model=model, args=args, train_dataset=dataset, processing_class=tokenizer).train()
    return model, tokenizer


def scorers(seed: int, base: Path, dataset: Dataset, output: Path) -> list[str]:
    """Return two models of short runs on all rows, early in training as the EL2N paper advises, made once."""
    folders = []
    for number in range(SCORING_RUNS):
        folder = output / f"scorer{seed}-{number}"
        if not (folder / "done").exists():
            model, tokenizer = fine_tune(base, dataset, 100 + 10 * seed + number, SCORING_STEPS, output / "trainer")
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            (folder / "done").touch()
        folders.append(str(folder))
    return folders


def run(seed: int, arm: str, data: Path, output: Path, steps: int) -> dict:
    """Train one arm and return its loss on the test problems."""
    base = pretrain(seed, data, output, PRETRAINING_STEPS)
    dataset = Dataset.from_list(read_rows(data / "gsm8k_train.jsonl.gz")[:ROWS])
    if arm != "full":
        by, _, fraction = arm.rpartition("-")
        options = {} if by == "random" else {"model": scorers(seed, base, dataset, output), "max_length": LONGEST}
        cache = {"cache_folder": output / "cache", "batch_size": BATCH, "seed": seed}
        dataset = build_selector(by, {**options, **cache, "fraction": float(fraction)}).select(dataset).dataset
    model, tokenizer = fine_tune(base, dataset, seed, steps, output / "trainer")
    sums, tokens = completion_losses(model, tokenizer, read_rows(data / "gsm8k_test.jsonl.gz"))
    lengths = [len(text) for text in dataset["completion"]]
    return {"loss": sum(sums) / sum(tokens), "kept": len(dataset), "mean_length": sum(lengths) / len(lengths)}


def summarise(results: dict[str, dict[int, dict]], folder: Path) -> None:
    """Print the test loss of each arm, and its difference to all rows and to random of the same size."""
    losses = {arm: {seed: r["loss"] for seed, r in of_seed.items()} for arm, of_seed in results.items()}
    table = {}
    for arm, of_seed in losses.items():
        twin = "full" if arm == "full" else f"random-{arm.rpartition('-')[2]}"
        to_full, to_random = paired(of_seed, losses["full"]), paired(of_seed, losses[twin])
        length = mean_and_interval([r["mean_length"] for r in results[arm].values()])
        mean = mean_and_interval(list(of_seed.values()))
        table[arm] = {"loss": mean, "to_full": to_full, "to_random": to_random, "length": length}
        print(
            f"{arm:16} loss {show(mean)}  to full {show(to_full)}  to random {show(to_random)}  {verdict(to_random)}"
        )
    write_json(folder / "pruning.json", table)


def main() -> None:
    """Run the arms that are not there yet, or sum them up."""
    torch.set_num_threads(1)
    args = arguments(__doc__, data=None, steps=STEPS)
    arms = dict.fromkeys(ARMS)
    if args.summary:
        summarise(load_all(args.output, args.seeds, arms), args.summary)
        return
    run_all(args.output, args.seeds, arms, lambda seed, arm: run(seed, arm, args.data, args.output, args.steps))


if __name__ == "__main__":
    main()
