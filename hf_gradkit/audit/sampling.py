"""How a model samples, exactly as `generate` does, and draws that do not depend on the batch.

Letters: `n` rows, `v` tokens of the vocabulary, `s` tokens of a suffix.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper


@dataclass(frozen=True)
class Sampling:
    """Which tokens a model may sample, and how often; the defaults are those of arXiv 2402.17012.

    Args:
        temperature: divides the logits, above 0.
        top_k: tokens that are kept, at least 1, or None for all.
        top_p: the likeliest tokens are kept until their probability reaches this, above 0 and at most 1.
    """

    temperature: float = 0.58
    top_k: int | None = 24
    top_p: float = 0.8

    def __post_init__(self):
        numbers = {"temperature": self.temperature, "top_p": self.top_p}
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
                raise ValueError(f"`{name}` must be a number above 0, but it is {value!r}.")
        if self.top_p > 1:
            raise ValueError(f"`top_p` is a probability and must be at most 1, but it is {self.top_p!r}.")
        if self.top_k is not None and (isinstance(self.top_k, bool) or not isinstance(self.top_k, int)):
            raise ValueError(f"`top_k` must be a whole number or None, but it is {self.top_k!r}.")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"`top_k` must be at least 1, but it is {self.top_k!r}. Leave it out to keep all tokens.")

    def warp(self, logits: Tensor) -> Tensor:
        """Return logits after temperature, top-k and top-p, minus infinity where a token is filtered. (n, v)"""
        # In the order in which `generate` applies them; none of them looks at the tokens so far.
        warpers = [TemperatureLogitsWarper(float(self.temperature))]
        if self.top_k is not None:
            warpers.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            warpers.append(TopPLogitsWarper(float(self.top_p)))
        for warper in warpers:
            logits = warper(None, logits)
        return logits

    def probabilities(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Return the probability that sampling gives each token. (n, v), (n,) -> (n,)"""
        return self.warp(logits.float()).softmax(-1).gather(1, tokens[:, None])[:, 0]


class OwnDraws(LogitsProcessor):
    """Lets greedy decoding sample: each row by uniform numbers of its own, whatever else is in the batch.

    Args:
        sampling: what may be drawn; a row with NaN draws stays greedy.
        draws: in [0, 1), one a row and token. (n, s)
        start: length of the prompt.
    """

    def __init__(self, sampling: Sampling, draws: np.ndarray, start: int):
        self.sampling, self.draws, self.start = sampling, torch.from_numpy(draws), start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        u = self.draws[:, input_ids.shape[1] - self.start].to(scores.device)  # (n,)
        sampled = ~u.isnan()
        if not sampled.any():
            return scores
        summed = self.sampling.warp(scores.float()).softmax(-1).double().cumsum(-1)  # (n, v)
        # The first token whose cumulated probability lies above the draw; one of probability 0 never is.
        chosen = torch.searchsorted(summed, (u.nan_to_num() * summed[:, -1])[:, None], right=True)
        only = torch.full_like(scores, -torch.inf).scatter_(1, chosen.clamp(max=scores.shape[1] - 1), 0.0)
        return torch.where(sampled[:, None], only, scores)


def uniform_draws(seed: int, row: int, sample: int, count: int) -> np.ndarray:
    """Return the numbers in [0, 1) by which one sample of one row is drawn. (count,)"""
    return np.random.default_rng([seed, row, sample]).random(count)
