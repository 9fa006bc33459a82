"""Prefixes of examples as prompts, the suffixes that are to be extracted, and their probability without sampling."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .._text import check_whole_number
from ..scoring import fingerprints
from ..scoring.token_rows import TokenRow
from .sampling import Sampling


@dataclass(frozen=True)
class Prompt:
    """An example as a prompt.

    Attributes:
        prefix: its first tokens. (k,) int64
        suffix: the tokens that follow, at least one. (s,) int64
        row: number of the example.
    """

    prefix: np.ndarray
    suffix: np.ndarray
    row: int


def make_prompts(rows: list[TokenRow], prefix_tokens: int, suffix_tokens: int, skip_short: bool) -> list[Prompt]:
    """Return the examples as prompts, those that are too short left out if asked.

    Args:
        rows: tokens of the examples.
        prefix_tokens: length of the prompt, k.
        suffix_tokens: tokens to extract; fewer where an example ends.
        skip_short: leave examples of at most k tokens out, instead of raising.

    Raises:
        ValueError: for lengths that cannot be, and examples that are too short.
    """
    for name, value in (("prefix_tokens", prefix_tokens), ("suffix_tokens", suffix_tokens)):
        check_whole_number(name, value, 1)
    short = [i for i, row in enumerate(rows) if len(row) <= prefix_tokens]
    if short and not skip_short:
        raise ValueError(
            f"{len(short)} of {len(rows)} examples have fewer than prefix_tokens + 1 = {prefix_tokens + 1} tokens "
            f"(the first ones, members first: {short[:5]}), so nothing of them is left to extract. Set a smaller "
            "`prefix_tokens`, or leave them out with `skip_short`."
        )
    left = set(short)
    return [
        Prompt(row.input_ids[:prefix_tokens], row.input_ids[prefix_tokens : prefix_tokens + suffix_tokens], i)
        for i, row in enumerate(rows)
        if i not in left
    ]


def hash_prompts(prompts: list[Prompt]) -> str:
    """Return one hash of all prompts and suffixes. 32 hexadecimal digits"""
    parts = [hashlib.blake2b(p.prefix.tobytes() + b"|" + p.suffix.tobytes()).hexdigest() for p in prompts]
    return fingerprints.digest(parts)


class SuffixScorer:
    """Gives the probability of each token of the true suffix, in one teacher-forced forward, for `score_rows`.

    Figures, 1 beyond a suffix's end: `sampled`, the probability that sampling gives the token after those before it;
    `greedy`, whether greedy decoding does; `log_probs`, its log-probability without sampling's options, in nats.

    Args:
        model: on its device, in evaluation mode.
        sampling: how it samples.
        suffix_tokens: width of the figures.
    """

    columns = ("sampled", "greedy", "log_probs")

    def __init__(self, model: Any, sampling: Sampling, suffix_tokens: int):
        self.model, self.sampling, self.width = model, sampling, suffix_tokens

    def length(self, item: Prompt) -> int:
        """Return the number of tokens."""
        return len(item.prefix) + len(item.suffix)

    @torch.no_grad()  # a split model gathers its parts into tensors that outlive the call
    def score(self, items: list[Prompt]) -> dict[str, np.ndarray]:
        """Return the figures of prompts with prefixes of one length. (n, s) float32 each"""
        start, longest = len(items[0].prefix), max(len(item.suffix) for item in items)
        ids = np.zeros((len(items), start + longest), dtype=np.int64)
        real = np.zeros_like(ids)
        for i, item in enumerate(items):
            tokens = np.concatenate([item.prefix, item.suffix])
            ids[i, : len(tokens)], real[i, : len(tokens)] = tokens, 1
        given, mask = (torch.from_numpy(values).to(self.model.device) for values in (ids, real))
        # Prefixes are of one length, so the last `longest` positions predict the suffixes, each from its first token.
        logits = self.model(
            input_ids=given[:, :-1], attention_mask=mask[:, :-1], logits_to_keep=longest, use_cache=False
        ).logits.float()  # (n, longest, v)
        tokens, there = given[:, start:].reshape(-1), mask[:, start:].bool()
        flat = logits.reshape(-1, logits.shape[-1])
        found = {
            "sampled": self.sampling.probabilities(flat, tokens),
            "greedy": (flat.argmax(-1) == tokens).float(),
            "log_probs": flat.gather(1, tokens[:, None])[:, 0] - flat.logsumexp(-1),
        }
        columns = {}
        for name, values in found.items():
            figures = np.ones((len(items), self.width), dtype=np.float32)
            figures[:, :longest] = torch.where(there, values.view(there.shape), 1.0).cpu().numpy()
            columns[name] = figures
        return columns
