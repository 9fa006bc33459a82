"""Preference pairs and reward models that several tests share."""

import json
import random
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForSequenceClassification

from helpers import WORDS

KINDS = ("plain", "prompt", "messages", "messages prompt")


def make_pairs(n: int, kind: str = "plain", seed: int = 0) -> list[dict]:
    """Return pairs of unequal length, two with each prompt; of one of `KINDS`."""
    rng = random.Random(seed)
    rows = []
    for number in range(n):
        if number % 2 == 0:
            prompt = " ".join(rng.choices(WORDS, k=rng.randint(2, 12))) + " ?"
        chosen, rejected = (" " + " ".join(rng.choices(WORDS, k=rng.randint(1, 20))) for _ in range(2))
        if kind == "plain":
            rows.append({"chosen": prompt + chosen, "rejected": prompt + rejected})
        elif kind == "prompt":
            rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
        else:
            asked = [{"role": "user", "content": prompt}]
            chosen, rejected = ([{"role": "assistant", "content": text}] for text in (chosen, rejected))
            row = {"prompt": asked, "chosen": chosen, "rejected": rejected}
            if kind == "messages":
                row = {"chosen": asked + chosen, "rejected": asked + rejected}
            rows.append(row)
    return rows


def pair_dataset(n: int = 12, kind: str = "plain", seed: int = 0) -> Dataset:
    """Return pairs as a data set."""
    return Dataset.from_list(make_pairs(n, kind, seed))


def reward_model(tokenizer, seed: int = 0, labels: int = 1, hidden: int = 32, length: int = 256, **options):
    """Return a Llama with a reward head, float32, whose rewards are spread out."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=length,
        num_labels=labels,
        **{"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, **options},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForSequenceClassification(config)
        with torch.no_grad():
            model.score.weight.mul_(20)
    return model.eval()


def save_reward_model(tokenizer, folder: Path, **options) -> Path:
    """Write a reward model with its tokenizer."""
    reward_model(tokenizer, **options).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_pairs(path: Path, rows: list[dict]) -> Path:
    """Write pairs as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def one_by_one(model, sequences) -> torch.Tensor:
    """The oracle: each sequence alone, unpadded, in float64, and the head on its last token. (n,)"""
    rewards, model = [], model.double().eval()
    with torch.no_grad():
        for ids in sequences:
            hidden = model.model(torch.tensor(ids)[None]).last_hidden_state
            rewards.append(model.score(hidden[0, -1]).item())
    model.float()
    return torch.tensor(rewards, dtype=torch.float64)


def rewards_of(scored: Dataset) -> np.ndarray:
    """Return the rewards of chosen and rejected of scored data. (n, 2)"""
    return np.array([scored["reward_chosen"], scored["reward_rejected"]]).T
