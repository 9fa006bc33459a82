"""One micro-batch of preference pairs on its way through the loss."""

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from ..data.columns import ExampleInfo
from ..objectives.base import PreferenceRecord
from ..objectives.logps import preference_record


class PairBatch:
    """n pairs: TRL's batch of 2n rows, what the policy says of them, and their weights.

    Args:
        inputs: TRL's batch, with the reference's log-probabilities.
        info: what the pairs carry; None in evaluation.

    Attributes:
        mask: 1 on the answers' tokens, at the positions that score them. (2n, T)
        tokens: number of tokens of both answers of each pair. (n,)
        chosen_tokens: number of tokens of the chosen answer. (n,)
        weights: what multiplies preference terms. (n,)
        column: what multiplies regularisers. (n,)
    """

    def __init__(self, inputs: dict[str, Any], info: ExampleInfo | None):
        self.info = info
        self.mask = inputs["completion_mask"][:, 1:]
        self.chosen_tokens, rejected_tokens = self.mask.sum(dim=1).chunk(2)
        self.tokens = self.chosen_tokens + rejected_tokens
        self._reference = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        self.weights = self.column = torch.ones(len(self.tokens), device=self.mask.device)

    def read(self, log_probs: Tensor, beta: float, ld_alpha: float | None) -> None:
        """Take the policy's log-probabilities of tokens. Prompt learning puts positions before the real ones.

        Args:
            log_probs: zero where `mask` is. (2n, >= T)
            beta, ld_alpha: of the trainer.
        """
        self.token_logps = log_probs[:, -self.mask.shape[1] :]
        self.record = preference_record(self.token_logps, self.mask, *self._reference, beta, ld_alpha)

    def detached(self) -> PreferenceRecord:
        """Return the record without its graph."""
        values = {field.name: getattr(self.record, field.name) for field in fields(self.record)}
        return replace(self.record, **{k: v.detach() for k, v in values.items() if isinstance(v, Tensor)})

    @property
    def chosen_nll(self) -> Tensor:
        """Negative log-probability of each chosen answer, summed over its tokens. (n,)"""
        return -self.token_logps[: len(self.tokens)].sum(dim=1)
