"""Rows a second of FiFA from rows to a selection, and which part of it takes the time.

    python benchmarks/selection_throughput.py                                   # a minute on one CPU core
    python benchmarks/selection_throughput.py --rows 60000 --hidden 1024 --layers 16 --batch 64      # where a GPU is

Pairs are synthetic, prompts of 10 to 60 words. Margins come from a reward model, quality from the perplexity of a
language model, embeddings from hashed TF-IDF (or, with --embedder transformers, the language model's hidden states);
the models are Llamas with random weights, of the size that is asked for. Nothing is kept from before.
"""

import argparse
import json
import random
import shlex
import sys
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from hf_gradkit.data.tiny import train_tokenizer
from hf_gradkit.selection import FiFA

WORDS = [f"{a}{b}{c}" for a in "bdfgklmn" for b in "aeiou" for c in ("", "n", "rt", "st", "ck")]


def make_pairs(rows: int) -> Dataset:
    """Return pairs whose prompts are all different."""
    rng = random.Random(0)

    def text(low: int, high: int) -> str:
        return " " + " ".join(rng.choices(WORDS, k=rng.randint(low, high)))

    return Dataset.from_list(
        [{"prompt": f"{i}" + text(10, 60), "chosen": text(20, 80), "rejected": text(20, 80)} for i in range(rows)]
    )


def make_models(folder: Path, options: argparse.Namespace) -> None:
    """Write a reward model and a language model with random weights."""
    rows = make_pairs(500)
    tokenizer = train_tokenizer(rows["prompt"], 1024)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=options.hidden,
        intermediate_size=3 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=1024,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        num_labels=1,
    )
    torch.manual_seed(0)
    for name, kind in (("reward", LlamaForSequenceClassification), ("language", LlamaForCausalLM)):
        kind(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def main() -> None:
    """Run the benchmark and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--method", choices=["modular", "greedy"], default="modular")
    parser.add_argument("--embedder", choices=["tfidf", "transformers"], default="tfidf")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_models(folder, options)
        dataset = make_pairs(options.rows)
        embedder = {"by": "transformers", "model": str(folder / "language")}
        fifa = FiFA(
            margin={"by": "reward_model", "model": str(folder / "reward")},
            quality={"by": "perplexity", "model": str(folder / "language")},
            embedder="tfidf" if options.embedder == "tfidf" else embedder,
            method=options.method,
            fraction=0.1,
            batch_size=options.batch,
            cache_folder=folder / "cache",
        )
        start = time.perf_counter()
        result = fifa.select(dataset)
        total = time.perf_counter() - start
    seconds = {**result.report["seconds"], "rest": total - sum(result.report["seconds"].values())}
    print(f"{options.rows} pairs in {total:.1f} s: {options.rows / total:.1f} rows a second")
    for part, taken in seconds.items():
        print(f"{part:<12}{taken:8.2f} s {taken / total:6.1%}")
    if options.json:
        figures = {
            "command": shlex.join(["python", "benchmarks/selection_throughput.py", *sys.argv[1:]]),
            "options": {name: value for name, value in vars(options).items() if name != "json"},
            "rows_per_second": options.rows / total,
            "seconds": seconds,
            "device": "cuda" if torch.cuda.is_available() else "cpu",
            "torch": torch.__version__,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
        print(f"Figures: {options.json}")


if __name__ == "__main__":
    main()
