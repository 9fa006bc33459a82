"""Preference pairs and DPO runs that several tests share."""

import random
from typing import Any

import torch
import trl
from datasets import Dataset

import hf_gradkit
from helpers import DEFAULTS, WORDS
from hf_gradkit.data.tiny import tiny_llama

COLUMNS = ("prompt", "chosen", "rejected")
OURS = (hf_gradkit.DPOTrainer, hf_gradkit.DPOConfig)
THEIRS = (trl.DPOTrainer, trl.DPOConfig)


def make_pairs(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return pairs of unequal length with every column that the tests need."""
    rng = random.Random(seed)

    def text(low: int, high: int) -> str:
        return " " + " ".join(rng.choices(WORDS, k=rng.randint(low, high)))

    return [
        {
            "prompt": text(2, 6),
            "chosen": text(3, 12),
            "rejected": text(3, 12),
            "reward_margin": rng.gauss(1.0, 2.0),
            "weight": [0.0, 0.5, 1.0, 2.0][i % 4],
            "source": ["web", "books", "code"][i % 3],
            "uid": f"pair-{i:04d}",
        }
        for i in range(n)
    ]


def pairs(n: int = 24, *columns: str, seed: int = 0) -> Dataset:
    """Return a data set of pairs with the further columns asked for."""
    rows = make_pairs(n, seed)
    return Dataset.from_list([{name: row[name] for name in (*COLUMNS, *columns)} for row in rows])


def save_policy(folder, tokenizer, **options):
    """Write a tiny policy to a folder, from where TRL loads its reference as well, and return its path."""
    tiny_llama(tokenizer, **{"hidden_size": 32, **options}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def dpo(trainer_class, config_class, policy, output_dir, dataset, trainer_kwargs=None, **options):
    """Return a DPO trainer with SGD in float32, ready to train."""
    args = config_class(**{"output_dir": str(output_dir), **DEFAULTS, **options})
    return trainer_class(model=policy, args=args, train_dataset=dataset, **(trainer_kwargs or {}))


def train_dpo(*positional, resume=None, **keywords):
    """Train with DPO and return the trainer."""
    trainer = dpo(*positional, **keywords)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def first_batch(trainer) -> dict[str, Any]:
    """Return the first training batch, and give the reference weights of its own, so that no margin is zero."""
    if trainer.ref_model is not None:
        with torch.no_grad():
            for i, parameter in enumerate(trainer.ref_model.parameters()):
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
                parameter.add_(0.05 * noise.to(parameter))
    return next(iter(trainer.get_train_dataloader()))


def loss_and_gradient(trainer, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss of one batch and its gradient, all trainable parameters one after the other."""
    trainer.model.train()
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    gradients = [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
    return loss.detach(), torch.cat(gradients).clone()
