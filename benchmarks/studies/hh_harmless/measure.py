"""What is measured of a policy on pairs: its implicit reward, and how far log-probabilities have moved."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

BETA = 0.1
SIDES = ("chosen", "rejected")


@torch.no_grad()
def log_probs(folder: Path, pairs: list[dict[str, str]]) -> dict[str, torch.Tensor]:
    """Return the summed log-probability of each chosen and rejected answer, end token included. (pairs,) each"""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sums = {}
    for side in SIDES:
        asked = [len(tokenizer(pair["prompt"])["input_ids"]) for pair in pairs]
        texts = [tokenizer(pair["prompt"] + pair[side])["input_ids"] for pair in pairs]
        rows = [[*text, tokenizer.eos_token_id] for text in texts]
        parts = [_sums(model, rows[i : i + 50], asked[i : i + 50]) for i in range(0, len(rows), 50)]
        sums[side] = torch.cat(parts)
    return sums


def _sums(model, rows: list[list[int]], asked: list[int]) -> torch.Tensor:
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])  # (n, width)
    lengths = torch.tensor([len(row) for row in rows])[:, None]
    place = torch.arange(width)[None]
    answer = (place < lengths) & (place >= torch.tensor(asked)[:, None])
    logits = model(input_ids=ids, attention_mask=(place < lengths).long(), use_cache=False).logits[:, :-1]
    taken = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return (taken * answer[:, 1:]).sum(-1)


def measure(policy: Path, reference: dict[str, torch.Tensor], pairs: list[dict[str, str]]) -> dict[str, float]:
    """Return the DPO loss, the accuracy of the implicit reward, and the drift of both answers in nats."""
    sums = log_probs(policy, pairs)
    drift = {side: sums[side] - reference[side] for side in SIDES}
    margins = drift["chosen"] - drift["rejected"]
    return {
        "loss": -F.logsigmoid(BETA * margins).mean().item(),
        "accuracy": (margins > 0).double().mean().item(),
        "chosen_drift": drift["chosen"].mean().item(),
        "rejected_drift": drift["rejected"].mean().item(),
    }


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a JSON lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
