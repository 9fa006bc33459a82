"""Rows, runs and comparisons that several tests share."""

import random
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback

from hf_gradkit.data.tiny import tiny_llama

WORDS = "the a cat dog mat sat ran saw one big red house on and to under old".split()  # noqa: SIM905


def make_rows(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return rows of unequal length with every column that the tests need."""
    rng = random.Random(seed)
    rows = []
    for i in range(n):
        text = " ".join(rng.choices(WORDS, k=rng.randint(4, 24)))
        head, tail = text[: len(text) // 3], text[len(text) // 3 :]
        rows.append(
            {
                "text": text,
                "prompt": head,
                "completion": tail,
                "messages": [{"role": "user", "content": head}, {"role": "assistant", "content": tail}],
                "weight": [0.0, 0.5, 1.0, 2.0][i % 4],
                "source": ["web", "books", "code"][i % 3],
                "uid": f"id-{i:04d}",
            }
        )
    return rows


def text_dataset(n: int = 24, *columns: str, seed: int = 0) -> Dataset:
    """Return a data set of plain text with the further columns asked for."""
    return dataset_of(n, "text", *columns, seed=seed)


def dataset_of(n: int, *columns: str, seed: int = 0) -> Dataset:
    """Return a data set with the columns asked for."""
    return Dataset.from_list([{name: row[name] for name in columns} for row in make_rows(n, seed)])


DEFAULTS = {
    "max_steps": 4,
    "per_device_train_batch_size": 4,
    "logging_steps": 1,
    "use_cpu": True,
    "bf16": False,
    "optim": "sgd",
    "learning_rate": 0.1,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "activation_checkpointing": False,
}


def train(trainer_class, config_class, tokenizer, output_dir, dataset, trainer_kwargs=None, resume=None, **options):
    """Train a tiny Llama with SGD in float32 and return the trainer."""
    trainer = make_trainer(trainer_class, config_class, tokenizer, output_dir, dataset, trainer_kwargs, **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def make_trainer(trainer_class, config_class, tokenizer, output_dir, dataset, trainer_kwargs=None, **options):
    """Return a trainer of a tiny Llama, ready to train."""
    keywords = dict(trainer_kwargs or {})
    model = keywords.pop("model", None) or tiny_llama(tokenizer, hidden_size=32, dropout=keywords.pop("dropout", 0.0))
    return trainer_class(
        model=model,
        args=config_class(**{"output_dir": str(output_dir), **DEFAULTS, **options}),
        train_dataset=dataset,
        processing_class=tokenizer,
        **keywords,
    )


def parameter_gap(a, b) -> float:
    """Return the largest absolute difference between the parameters of two trainers' models."""
    pairs = zip(a.model.state_dict().items(), b.model.state_dict().items(), strict=True)
    gaps = []
    for (name, p), (other, q) in pairs:
        assert name == other
        gaps.append((p - q).abs().max().item())
    return max(gaps)


TIMINGS = ("runtime", "per_second")
NOT_RESUMED = ("num_tokens",)  # TRL counts them from the start of the process


def logs_without_timings(trainer) -> list[dict[str, float]]:
    """Return the log history without what a clock decides."""
    return [
        {key: value for key, value in entry.items() if not any(part in key for part in TIMINGS)}
        for entry in trainer.state.log_history
    ]


def step_logs(trainer, key: str) -> list[float]:
    """Return one figure of every training log that has it."""
    return [entry[key] for entry in trainer.state.log_history if key in entry and "loss" in entry]


class StopError(RuntimeError):
    """Stands for a crash in the middle of training."""


def crash_after(step):
    class Crash(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == step:
                raise StopError

    return Crash()


def last_token_loss(outputs, inputs):
    """A loss of the user's own that padding does not touch: pull the last real token's first logit to 1."""
    last = inputs["attention_mask"].sum(1) - 1
    logits = outputs.logits[torch.arange(len(last)), last]
    return (logits[:, 0] - 1).square()
