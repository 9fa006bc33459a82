"""What a model writes after a prefix: greedily once, and sampled n times, the same in every batch and process."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import GenerationConfig, LogitsProcessorList

from ..scoring.sharding import is_split
from .sampling import OwnDraws, Sampling, uniform_draws
from .suffixes import Prompt

ENDED = -1  # stands where a guess has ended
GREEDY = -1  # number of the attempt that is decoded greedily


@dataclass(frozen=True)
class Attempt:
    """One text to be written.

    Attributes:
        prompt: after what.
        sample: number of the sample, or `GREEDY`.
    """

    prompt: Prompt
    sample: int


class GenerationScorer:
    """Writes after prompts, for `score_rows`: the figure is the tokens written, `ENDED` after the end token.

    Args:
        model: on its device, in evaluation mode.
        sampling: how it samples.
        suffix_tokens: tokens to write.
        end_token: ends a text, or None.
        seed: of the samples.
    """

    columns = ("guess",)

    def __init__(self, model: Any, sampling: Sampling, suffix_tokens: int, end_token: int | None, seed: int):
        self.model, self.sampling, self.width = model, sampling, suffix_tokens
        self.end_token, self.seed = end_token, seed
        self._split = is_split(model)

    def length(self, item: Attempt) -> int:
        """Return the number of tokens that are read."""
        return len(item.prompt.prefix)

    @torch.no_grad()  # a split model gathers its parts into tensors that outlive the call
    def score(self, items: list[Attempt]) -> dict[str, np.ndarray]:
        """Return the tokens written after prompts with prefixes of one length. (n, s) int64"""
        ids = torch.from_numpy(np.stack([item.prompt.prefix for item in items])).to(self.model.device)
        draws = np.stack([self._draws(item) for item in items])
        with plain_generation(self.model):
            written = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                generation_config=GenerationConfig(
                    do_sample=False,
                    num_beams=1,
                    max_new_tokens=self.width,
                    eos_token_id=self.end_token,
                    pad_token_id=0 if self.end_token is None else self.end_token,
                ),
                logits_processor=LogitsProcessorList([OwnDraws(self.sampling, draws, ids.shape[1])]),
                # A split model is gathered by all processes at each token: who is done goes on until all are.
                synced_gpus=self._split,
            )[:, ids.shape[1] :]
        guess = np.full((len(items), self.width), ENDED, dtype=np.int64)
        guess[:, : written.shape[1]] = written.cpu().numpy()
        ended = np.cumsum(guess == self.end_token, axis=1) - (guess == self.end_token) > 0
        guess[ended] = ENDED
        return {"guess": guess}

    def _draws(self, item: Attempt) -> np.ndarray:
        if item.sample == GREEDY:
            return np.full(self.width, np.nan)
        return uniform_draws(self.seed, item.prompt.row, item.sample, self.width)


@contextmanager
def plain_generation(model: Any) -> Iterator[None]:
    """Let `generate` use what it is given, and nothing of the model's own settings, such as a repetition penalty."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    before = inner.generation_config
    inner.generation_config = GenerationConfig()
    try:
        yield
    finally:
        inner.generation_config = before
