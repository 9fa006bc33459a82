"""SFT data of every form, and a slow, plain computation of its scores: one example at a time, full logits, float64."""

import copy

import pytest
import torch
from datasets import Dataset

from helpers import make_rows
from hf_gradkit.scoring import add_difficulty

ALL = ("loss", "perplexity", "el2n", "grand", "token_accuracy")


def sft_rows(kind: str, n: int = 12) -> list[dict]:
    """Return rows of one form of SFT data, of unequal length, with an id."""
    rows = []
    for row in make_rows(n, seed=3):
        ask, answer = row["messages"]
        content = {
            "text": {"text": row["text"]},
            "prompt-completion": {"prompt": row["prompt"], "completion": row["completion"]},
            "chat": {"messages": row["messages"]},
            "chat of two turns": {"messages": [*row["messages"], ask, answer]},
            "chat prompt-completion": {"prompt": [ask], "completion": [answer]},
            "from and value": {
                "conversations": [
                    {"from": "user", "value": row["prompt"]},
                    {"from": "assistant", "value": row["completion"]},
                ]
            },
        }[kind]
        rows.append({**content, "uid": row["uid"]})
    return rows


def sft_data(kind: str, n: int = 12) -> Dataset:
    """Return one form of SFT data."""
    return Dataset.from_list(sft_rows(kind, n))


def plain_log_probs(model, row) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log p over the vocabulary at each label of one example (t, V), and the labels (t,), from full logits."""
    ids, labels = torch.tensor(row.input_ids)[None], torch.tensor(row.labels)[1:]
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
    return logits.log_softmax(-1)[labels != -100], labels[labels != -100]


def plain_scores(model, row) -> dict[str, float]:
    """Return the scores of one example by their definitions, in float64, gradient and all."""
    model = copy.deepcopy(model).double()
    log_p, labels = plain_log_probs(model, row)
    loss = -log_p[torch.arange(len(labels)), labels].mean()
    onehot = torch.nn.functional.one_hot(labels, log_p.shape[1])
    loss.backward()
    squares = [p.grad.square().sum() for p in model.parameters() if p.requires_grad and p.grad is not None]
    return {
        "loss": loss.item(),
        "perplexity": loss.exp().item(),
        "el2n": (log_p.exp() - onehot).norm(dim=1).mean().item(),
        "grand": torch.stack(squares).sum().sqrt().item(),
        "token_accuracy": (log_p.argmax(1) == labels).double().mean().item(),
    }


def scoring_with(model, tokenizer, folder):
    """Return a function that scores with a model, and keeps nothing from call to call."""
    calls = []

    def call(dataset, models=model, by=ALL, **options):
        calls.append(None)
        known = {"tokenizer": tokenizer, "cache_folder": folder / str(len(calls)), "example_id_column": "uid"}
        return add_difficulty(dataset, models, by, **{**known, **options})

    return call


def save(model, tokenizer, folder) -> str:
    """Save a model with its tokenizer, and return where."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def assert_scores(scored, model, rows, by=ALL, rel=1e-5, suffix=""):
    """Assert that scores are those of one example at a time."""
    for found, row in zip(scored, rows, strict=True):
        expected = plain_scores(model, row)
        for name in by:
            assert found[f"{name}{suffix}"] == pytest.approx(expected[name], rel=rel), name
