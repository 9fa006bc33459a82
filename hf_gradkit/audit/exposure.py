"""Exposure of canaries (Carlini et al., arXiv 1802.08232): how far a planted secret stands out among its like."""

import numpy as np


def exposure(loss: float, others: np.ndarray) -> float:
    """Return log2 |R| - log2 rank of a canary among |R| secrets of its format, itself included. Bits

    0 for the worst rank, log2 |R| where the canary is the model's first choice. Equals count against the auditor's
    alarm: a canary ties for the worse rank.

    >>> exposure(1.0, np.array([2.0, 3.0, 4.0]))
    2.0

    Args:
        loss: of the canary under the model.
        others: of secrets of the same format that were not trained on. (|R| - 1,)
    """
    rank = 1 + int((np.asarray(others) <= loss).sum())
    return float(np.log2(len(others) + 1) - np.log2(rank))
