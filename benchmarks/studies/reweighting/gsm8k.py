"""gsm8k: a tiny Llama, pre-trained on plain text, fine-tuned on worked answers uniformly and with LinUpper.

python gsm8k.py --data DATA --output OUT            runs
python gsm8k.py --data DATA --output OUT --summary FOLDER
"""

import json
import re
import statistics
from itertools import pairwise
from pathlib import Path

import torch
from common import PLAIN, arguments, load_all, mean_and_interval, paired, read_text, run_all, show, verdict, write_json
from datasets import Dataset
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, default_data_collator

from hf_gradkit import SFTConfig, SFTTrainer, Trainer, TrainingArguments
from hf_gradkit.data.tiny import tiny_llama, train_tokenizer

VOCABULARY, BATCH, BLOCK, LONGEST = 1024, 8, 256, 512
PRETRAINING_STEPS, PRETRAINING_RATE, RATE = 400, 2e-3, 1e-3
GENERATED, NEW_TOKENS = 100, 200
ARMS = {
    "uniform": {},
    "linupper_r1": {"weighting": "linupper", "weighting_kwargs": {"temperature": 1.0}},
    "linupper_r04": {"weighting": "linupper", "weighting_kwargs": {"temperature": 0.4}},
}


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the problems of a file as prompts and completions."""
    rows = [json.loads(line) for line in read_text(path).splitlines()]
    return [{"prompt": f"Question: {r['question']}\nAnswer:", "completion": f" {r['answer']}"} for r in rows]


def plain_texts(data: Path) -> list[str]:
    """Return the plain text of the pre-training: Shakespeare, and the training problems with their answers."""
    shakespeare = read_text(data / "tinyshakespeare.txt.gz")
    problems = [row["prompt"] + row["completion"] for row in read_rows(data / "gsm8k_train.jsonl.gz")]
    return [shakespeare[i : i + 2000] for i in range(0, len(shakespeare), 2000)] + problems


def pretrain(seed: int, data: Path, folder: Path, steps: int) -> Path:
    """Pre-train the base model of a seed, all its arms start from it, and return its folder."""
    base = folder / f"base{seed}"
    if (base / "done").exists():
        return base
    texts = plain_texts(data)
    tokenizer = train_tokenizer(texts, VOCABULARY)
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
    ids = [i for t in order for i in [*tokenizer(texts[t])["input_ids"], tokenizer.eos_token_id]]
    rows = torch.tensor(ids[: len(ids) // BLOCK * BLOCK]).view(-1, BLOCK).tolist()
    args = TrainingArguments(
        output_dir=str(folder / "trainer"),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=PRETRAINING_RATE,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        weight_decay=0.01,
        logging_steps=50,
        seed=seed,
        **PLAIN,
    )
    model = tiny_llama(tokenizer, hidden_size=128, layers=2, max_length=LONGEST, seed=seed)
    dataset = Dataset.from_dict({"input_ids": rows, "labels": rows})
    Trainer(model=model, args=args, train_dataset=dataset, data_collator=default_data_collator).train()
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    (base / "done").touch()
    return base


def completion_losses(model, tokenizer, rows: list[dict]) -> tuple[list[float], list[int]]:
    """Return the summed cross-entropy and the tokens of each completion, end token included."""
    encoded = []
    for row in rows:
        prompt = tokenizer(row["prompt"])["input_ids"]
        completion = [*tokenizer(row["completion"])["input_ids"], tokenizer.eos_token_id]
        encoded.append((torch.tensor(prompt + completion)[:LONGEST], len(prompt)))
    order = sorted(range(len(rows)), key=lambda i: len(encoded[i][0]))
    sums, tokens = [0.0] * len(rows), [0] * len(rows)
    model.eval()
    for begin in range(0, len(order), 16):
        batch = order[begin : begin + 16]
        ids = pad_sequence([encoded[i][0] for i in batch], batch_first=True)
        labels = torch.full_like(ids, -100)
        for row, i in enumerate(batch):
            labels[row, encoded[i][1] : len(encoded[i][0])] = encoded[i][0][encoded[i][1] :]
        with torch.no_grad():  # padding is on the right, where a causal model does not see it
            logits = model(input_ids=ids).logits[:, :-1]
        losses = cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none")
        for row, i in enumerate(batch):
            sums[i], tokens[i] = float(losses[row].sum()), int((labels[row] != -100).sum())
    return sums, tokens


def final_number(text: str) -> str | None:
    """Return the number after the mark of a final answer.

    >>> final_number("so 1,200 in all.\\n#### 1,200")
    '1200'
    """
    found = re.search(r"####\s*(-?[\d,]*\.?\d+)", text)
    return found.group(1).replace(",", "") if found else None


def exact_matches(model, tokenizer, rows: list[dict]) -> tuple[int, int]:
    """Return how many greedy answers give the right final number, and how many give any."""
    tokenizer.padding_side = "left"
    batch = tokenizer([row["prompt"] for row in rows], return_tensors="pt", padding=True)
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        generated = model.generate(**batch, max_new_tokens=NEW_TOKENS, do_sample=False)
    answers = tokenizer.batch_decode(generated[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    numbers = [final_number(answer) for answer in answers]
    right = sum(n is not None and n == final_number(r["completion"]) for n, r in zip(numbers, rows, strict=True))
    return right, sum(n is not None for n in numbers)


def run(seed: int, arm: str, steps: int, pretraining_steps: int, data: Path, folder: Path) -> dict:
    """Fine-tune one arm and return what it gives on the test file."""
    base = pretrain(seed, data, folder, pretraining_steps)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base)
    test = read_rows(data / "gsm8k_test.jsonl.gz")
    base_sums = completion_losses(model, tokenizer, test)[0] if arm == "uniform" else None
    args = SFTConfig(
        output_dir=str(folder / "trainer"),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=RATE,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        weight_decay=0.01,
        max_grad_norm=1.0,
        max_length=LONGEST,
        gradient_checkpointing=False,
        logging_steps=12,  # the first log lies within the warm-up of the weights: all arms must agree there
        seed=seed,
        **ARMS[arm],
        **PLAIN,
    )
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(read_rows(data / "gsm8k_train.jsonl.gz")),
        processing_class=tokenizer,
    )
    trainer.train()
    sums, tokens = completion_losses(model, tokenizer, test)
    right, answered = exact_matches(model, tokenizer, test[:GENERATED])
    return {
        "loss": sum(sums) / sum(tokens),
        "sums": [round(s, 4) for s in sums],
        "tokens": tokens,
        "base_sums": base_sums and [round(s, 4) for s in base_sums],
        "right": right,
        "answered": answered,
        "log": [row for row in trainer.state.log_history if "loss" in row],
    }


def summarise(results: dict, folder: Path) -> None:
    """Print and write test losses, paired differences and exact matches, and draw the differences."""
    uniform = results["uniform"]
    tokens = next(iter(uniform.values()))["tokens"]
    base = [statistics.fmean(r["base_sums"][i] for r in uniform.values()) / tokens[i] for i in range(len(tokens))]
    quarters = _quarters(base)
    base_losses = {seed: sum(r["base_sums"]) / sum(tokens) for seed, r in uniform.items()}
    rows = {"base": {"loss": base_losses}}
    print(f"{'base':14} loss {statistics.fmean(base_losses.values()):.4f}")
    for arm, of_seed in results.items():
        losses = {seed: r["loss"] for seed, r in of_seed.items()}
        by_example = [
            statistics.fmean(of_seed[s]["sums"][i] - uniform[s]["sums"][i] for s in of_seed) / tokens[i]
            for i in range(len(tokens))
        ]
        row = {
            "loss": losses,
            "difference": paired(losses, {seed: r["loss"] for seed, r in uniform.items()}),
            "by_example": mean_and_interval(by_example),
            "by_quarter": [_quarter_difference(of_seed, uniform, tokens, quarter) for quarter in quarters],
            "right": {seed: r["right"] for seed, r in of_seed.items()},
            "answered": {seed: r["answered"] for seed, r in of_seed.items()},
            "first_log_difference": max(
                abs(r["log"][0]["loss"] - uniform[s]["log"][0]["loss"]) for s, r in of_seed.items()
            ),
            "weights_in_last_log": {k: v for k, v in of_seed[min(of_seed)]["log"][-1].items() if "weights/" in k},
        }
        rows[arm] = row
        print(
            f"{arm:14} loss {statistics.fmean(losses.values()):.4f}  {show(row['difference'])}  "
            f"{'' if arm == 'uniform' else verdict(row['difference'])}\n"
            f"{'':14} over examples {show(row['by_example'])}; exact match {sum(row['right'].values())}, "
            f"any number {sum(row['answered'].values())} of {GENERATED * len(of_seed)}"
        )
        for name, difference in zip(("easiest", "second", "third", "hardest"), row["by_quarter"], strict=True):
            print(f"{'':14} {name:8} quarter {show(difference)}")
    write_json(folder / "gsm8k.json", rows)
    _draw(rows, folder / "gsm8k.png")


def _quarters(losses: list[float]) -> list[list[int]]:
    """Return the test examples in quarters from the lowest to the highest loss of the base models."""
    order = sorted(range(len(losses)), key=losses.__getitem__)
    bounds = [round(len(order) * i / 4) for i in range(5)]
    return [order[a:b] for a, b in pairwise(bounds)]


def _quarter_difference(of_seed: dict, uniform: dict, tokens: list[int], quarter: list[int]) -> dict[str, float]:
    def loss(result: dict) -> float:
        return sum(result["sums"][i] for i in quarter) / sum(tokens[i] for i in quarter)

    return paired({s: loss(r) for s, r in of_seed.items()}, {s: loss(r) for s, r in uniform.items()})


def _draw(rows: dict, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6.5, 3.4))
    labels = ["all", "easiest\nquarter", "second", "third", "hardest\nquarter"]
    for offset, arm in ((-0.1, "linupper_r1"), (0.1, "linupper_r04")):
        differences = [rows[arm]["difference"], *rows[arm]["by_quarter"]]
        means = [d["mean"] for d in differences]
        errors = [d["high"] - d["mean"] for d in differences]
        axis.errorbar([i + offset for i in range(5)], means, yerr=errors, fmt="o", capsize=3, label=arm)
    axis.axhline(0, color="grey", lw=0.6)
    axis.set_xticks(range(5), labels)
    axis.set_ylabel("test loss - uniform's, nats a token\n95 % interval over seeds")
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main() -> None:
    torch.set_num_threads(1)
    args = arguments(__doc__, data=None, steps=240, pretraining_steps=PRETRAINING_STEPS)
    if args.summary:
        summarise(load_all(args.output, args.seeds, ARMS), args.summary)
        return

    def one(seed: int, arm: str) -> dict:
        return run(seed, arm, args.steps, args.pretraining_steps, args.data, args.output)

    run_all(args.output, args.seeds, ARMS, one)


if __name__ == "__main__":
    main()
