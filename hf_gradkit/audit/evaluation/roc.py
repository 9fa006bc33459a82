"""How well a score tells members from non-members: ROC, AUC, and the true positive rate at low false positive rates.

Letters: `m` members, `n` non-members, `B` resamples, `v` vertices of the ROC. Scores are higher for likelier members;
ties are one vertex, so half of a tie counts for the AUC, and no threshold lies within one.
"""

import math

import numpy as np


def roc(scores: np.ndarray, members: np.ndarray, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the false and the true positive rate at each threshold, from (0, 0) to (1, 1). (B, v) each

    Args:
        scores: of all examples. (m + n,)
        members: which of them are members. (m + n,) bool
        weights: how often each example counts, in each resample; (1, m + n) ones when None. (B, m + n)

    Raises:
        ValueError: if there are no members or no non-members, or a score is not a number.
    """
    members = np.asarray(members, dtype=bool)
    if not members.any() or members.all():
        raise ValueError(f"There are {members.sum()} members and {(~members).sum()} non-members; both are needed.")
    if np.isnan(scores).any():
        raise ValueError(f"{np.isnan(scores).sum()} scores are not numbers, so examples cannot be ordered.")
    weights = np.ones((1, len(scores))) if weights is None else weights
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))  # the last of each tie
    rates = []
    for side in (~members, members):
        counts = np.cumsum(np.where(side, weights, 0.0)[:, order], axis=1)  # (B, m + n)
        with np.errstate(invalid="ignore"):
            rate = counts[:, ends] / counts[:, -1:]
        rates.append(np.concatenate([np.zeros((len(rate), 1)), rate], axis=1))
    return rates[0], rates[1]


def area(false: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Return the area under each ROC. (B, v) twice -> (B,)"""
    return (np.diff(false, axis=1) * (true[:, 1:] + true[:, :-1]) / 2).sum(axis=1)


def rate_at(false: np.ndarray, true: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest true positive rate whose false positive rate is at most `alpha`, and the latter. (B,) each"""
    last = (false <= alpha + 1e-12).sum(axis=1) - 1
    rows = np.arange(len(false))
    return true[rows, last], false[rows, last]


def auc(scores: np.ndarray, members: np.ndarray) -> float:
    """Return the chance that a random member scores higher than a random non-member, ties counting half.

    >>> auc(np.array([3.0, 2.0, 2.0, 1.0]), np.array([True, True, False, False]))
    0.875
    """
    return float(area(*roc(scores, members))[0])


def null_error(m: int, n: int) -> float:
    """Return the standard error of the AUC of a score that knows nothing (Mann-Whitney, without ties)."""
    return math.sqrt((m + n + 1) / (12 * m * n))
