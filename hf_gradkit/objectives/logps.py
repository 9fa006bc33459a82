"""From the log-probabilities of tokens to those of answers.

Layout: the batch holds the chosen answers of n pairs first and their rejected ones after them, 2n rows.
"""

import torch
from torch import Tensor

from .base import PreferenceRecord


def preference_record(
    token_logps: Tensor,
    mask: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    beta: float,
    ld_alpha: float | None = None,
) -> PreferenceRecord:
    """Sum the policy's log-probabilities over each answer, beside the reference's sums.

    Args:
        token_logps: log-probability of each token, zero outside the answers. (2n, T)
        mask: 1 on the answers' tokens. (2n, T)
        ref_chosen_logps, ref_rejected_logps: the reference's sums. (n,)
        beta: of the record.
        ld_alpha: weight of the tokens by which an answer is longer than the other one (LD-DPO, arXiv 2409.06411); None
            for all alike. The reference's sums must have been taken with the same.
    """
    tokens = mask.sum(dim=1)
    if ld_alpha is None:
        sums = token_logps.sum(dim=1)
    else:
        shorter = torch.minimum(*tokens.chunk(2)).repeat(2)[:, None]  # (2n, 1)
        tail = mask.cumsum(dim=1) > shorter
        sums = (token_logps * torch.where(tail, ld_alpha, 1.0)).sum(dim=1)
    chosen, rejected = sums.chunk(2)
    chosen_tokens, rejected_tokens = tokens.chunk(2)
    return PreferenceRecord(
        chosen, rejected, ref_chosen_logps, ref_rejected_logps, chosen_tokens, rejected_tokens, beta
    )
