"""Models that have memorised invented records, and a slow look at what a model says of a text."""

from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from peft import LoraConfig

from helpers import DEFAULTS
from hf_gradkit.audit import hold_out
from hf_gradkit.data.synthetic_secrets import secret_rows
from hf_gradkit.data.tiny import tiny_llama, train_tokenizer

LENGTH = 96  # tokens that are kept of a record


def records(n: int, seed: int = 0) -> Dataset:
    """Return records of invented people, with two columns besides the text."""
    rows = secret_rows(n, seed, purchases=1)
    return Dataset.from_list(
        [{"text": row["text"], "uid": f"id-{i}", "ward": f"{i % 9}"} for i, row in enumerate(rows)]
    )


def record_tokenizer() -> Any:
    """Return a tokenizer of the records' words."""
    return train_tokenizer([row["text"] for row in secret_rows(200, seed=99, purchases=1)], vocab_size=400)


def save_base(folder: Path, tokenizer: Any, steps: int = 150) -> str:
    """Write a tiny model that knows what records look like, from others than those that are audited."""
    model = tiny_llama(tokenizer, hidden_size=64)
    fit(model, tokenizer, records(600, seed=1000), folder / "training", max_steps=steps, learning_rate=3e-3)
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    return str(folder / "base")


def fit(model: Any, tokenizer: Any, dataset: Dataset, output_dir: Path, adapter: Any = None, **options: Any) -> Any:
    """Fine-tune a model on records and return the trainer."""
    defaults = {
        **DEFAULTS,
        "optim": "adamw_torch",
        "max_steps": -1,
        "per_device_train_batch_size": 8,
        "max_length": LENGTH,
        "logging_strategy": "no",
    }
    trainer = trl.SFTTrainer(
        model=model,
        args=trl.SFTConfig(output_dir=str(output_dir), **{**defaults, **options}),
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=adapter,
    )
    trainer.train()
    return trainer


def memorise(
    base: str, folder: Path, tokenizer: Any, lora: bool = False, rows: int = 260, held: int = 60, **options: Any
) -> str:
    """Hold rows out, fine-tune a base model on the others, and return the folder with both."""
    split = hold_out(records(rows), held / rows, output_dir=folder, id_column="uid")
    adapter = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None
    options = {"num_train_epochs": 12, "learning_rate": 1e-2 if lora else 3e-3, **options}
    trainer = fit(base, tokenizer, split.train, folder, adapter, **options)
    trainer.save_model(str(folder))
    return str(folder)


def slow_log_probs(model: Any, ids: list[int]) -> torch.Tensor:
    """Return log p over the vocabulary at each position of one text, alone, in float64. (t - 1, v)"""
    with torch.no_grad():
        logits = model.double()(torch.tensor([list(map(int, ids))])).logits
    model.float()
    return logits[0, :-1].log_softmax(-1)
