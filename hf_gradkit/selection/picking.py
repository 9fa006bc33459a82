"""From scores to rows: how many, ties, the highest ones, and the greedy choice that keeps its distance from itself."""

import math
import os
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from .zscore import RobustScale

# Scores are compared to this share of their spread: batches of another make-up move the last digits of a model's
# figures, which must not decide between rows that are equal. A share, so that the unit of the scores is no matter.
RESOLUTION = 1e-5


def size_of(fraction: float | None, count: int | None, rows: int) -> int:
    """Return how many rows are kept: `count`, or `fraction` of all, rounded and at least 1.

    Raises:
        ValueError: unless exactly one of them is given, in its domain, and there are rows enough.
    """
    if (fraction is None) == (count is None):
        given = "neither" if fraction is None else f"both ({fraction} and {count})"
        raise ValueError(f"Set `fraction` or `count`, one of them: how much of the data is kept. Given: {given}.")
    if fraction is not None:
        if not is_number(fraction) or not 0 < fraction <= 1:
            raise ValueError(
                f"`fraction` must be above 0 and at most 1, but it is {fraction!r}. 0.1 keeps a tenth of the rows."
            )
        return max(1, math.floor(fraction * rows + 0.5))
    if not is_number(count) or not isinstance(count, Integral) or count < 1:
        raise ValueError(f"`count` must be an integer of at least 1, but it is {count!r}.")
    if count > rows:
        raise ValueError(f"`count` asks for {count} rows, but the data has {rows}. Ask for fewer, or set `fraction`.")
    return int(count)


def is_number(value: Any) -> bool:
    """Return whether this is one number, also one of numpy's; true and false are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def tie_order(rows: int, seed: int) -> np.ndarray:
    """Return each row's place among rows of the same score; drawn, so that no part of the data is favoured. (n,)"""
    return np.random.default_rng([seed, 0]).permutation(rows)


def resolution(scores: np.ndarray, allowed: np.ndarray | None = None) -> float:
    """Return the difference of scores that is too small to decide between rows, or 0 where all scores are the same.

    Args:
        scores: finite where they are allowed. (n,)
        allowed: rows that may be taken, whose scores alone count; all when None. (n,) bool
    """
    counted = scores if allowed is None else scores[allowed]
    return RESOLUTION * RobustScale(counted).spread if len(counted) else 0.0


def highest(
    scores: np.ndarray,
    size: int,
    seed: int,
    allowed: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    per_group: int | None = None,
) -> np.ndarray:
    """Return the rows with the highest scores, best first; equal scores are ordered by the seed.

    Args:
        scores: finite. (n,)
        size: how many rows; fewer come back where the rules leave fewer.
        seed: orders ties.
        allowed: rows that may be taken; all when None. (n,) bool
        groups: number of the group that each row belongs to, such as its prompt. (n,)
        per_group: most rows of one group; no limit when None.
    """
    unit = resolution(scores, allowed)
    compared = np.round(scores / unit) if unit else np.zeros(len(scores))
    order = np.lexsort((tie_order(len(scores), seed), -compared))
    if allowed is not None:
        order = order[allowed[order]]
    if per_group is not None:
        order = order[_place_in_group(groups[order]) < per_group]
    return order[:size]


def shares_of(sizes: np.ndarray, total: int) -> np.ndarray:
    """Divide a number among groups in proportion to their sizes, by largest remainders. (G,) -> (G,) int64

    >>> shares_of(np.array([5, 3, 2]), 4).tolist()
    [2, 1, 1]

    No group gets more than it has, as long as the total is at most the sum of the sizes.
    """
    total = min(total, int(sizes.sum()))
    exact = total * sizes / max(1, sizes.sum())
    quotas = np.floor(exact).astype(np.int64)
    largest = np.argsort(-(exact - quotas), kind="stable")
    quotas[largest[: total - quotas.sum()]] += 1
    return quotas


def _place_in_group(groups: np.ndarray) -> np.ndarray:
    """Return how many earlier entries have the same number. (n,) -> (n,)

    >>> _place_in_group(np.array([7, 3, 7, 7, 3])).tolist()
    [0, 0, 1, 2, 1]
    """
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    first = np.r_[0, np.flatnonzero(np.diff(ordered)) + 1]
    starts = np.repeat(first, np.diff(np.r_[first, len(ordered)]))
    places = np.empty(len(groups), dtype=np.int64)
    places[order] = np.arange(len(groups)) - starts
    return places


def farthest(
    base: np.ndarray,
    distances: np.ndarray,
    points: np.ndarray | torch.Tensor,
    groups: np.ndarray,
    value: Callable[[np.ndarray], np.ndarray],
    size: int,
    seed: int,
    allowed: np.ndarray | None = None,
    per_group: int | None = None,
    progress: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Take rows one by one, each time the highest score, and lower the distance of what is near to a row taken.

        score_i = base_i + value(eps_i);    after row j is taken:    eps_i = min(eps_i, |e_i - e_j|)

    Rows of one group have one point, so that what is left of a group has distance 0 as soon as one row of it is taken.
    With `value` the identity, `base` 0 and equal distances at the start this is farthest-point sampling.

    Args:
        base: what of the score stays. (n,)
        distances: eps_i at the start, one a point. (N,)
        points: (N, d)
        groups: number of the point of each row. (n,)
        value: what a distance is worth, not decreasing. (m,) -> (m,)
        size: how many rows; fewer come back where the rules leave fewer.
        seed: orders ties.
        allowed: rows that may be taken; all when None. (n,) bool
        per_group: most rows of one group; no limit when None.
        progress: show a bar.

    Returns:
        The rows in the order in which they were taken, and the score that each had then. (K,) (K,)
    """
    points = torch.as_tensor(points).float()
    squares = points.square().sum(1)
    eps = np.array(distances, dtype=np.float64)
    # Rows are searched in the order of ties, of which `argmax` returns the first.
    order = np.argsort(tie_order(len(base), seed))
    group_of, fixed = groups[order], np.asarray(base, dtype=np.float64)[order]
    free = np.ones(len(base), dtype=bool) if allowed is None else allowed[order].copy()
    taken_of = np.zeros(len(eps), dtype=np.int64)
    size = min(size, int(free.sum()))
    worth = value(eps)
    unit = resolution(fixed + worth[group_of], free) or RESOLUTION
    taken, scores = [], []
    hidden = not progress or os.environ.get("TQDM_DISABLE") == "1"
    for _ in tqdm(range(size), desc="choosing", unit="row", disable=hidden):
        current = np.where(free, fixed + worth[group_of], -np.inf)
        place = int(np.round(current / unit).argmax())
        if not free[place]:
            break  # all that is left was ruled out by `per_group`
        taken.append(order[place])
        scores.append(current[place])
        free[place] = False
        group = group_of[place]
        taken_of[group] += 1
        if per_group is not None and taken_of[group] >= per_group:
            free[group_of == group] = False
        squared = squares + squares[group] - 2 * (points @ points[group])
        away = squared.clamp_(min=0).sqrt_().cpu().numpy().astype(np.float64)
        away[group] = 0.0
        nearer = away < eps
        eps[nearer] = away[nearer]
        worth[nearer] = value(eps[nearer])
    return np.array(taken, dtype=np.int64), np.array(scores)
