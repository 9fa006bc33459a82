"""How sure a figure is: exact intervals of a share, and bootstrap intervals that respect documents."""

import importlib.util
from collections.abc import Iterator
from typing import Any

import numpy as np

from .roc import area, rate_at, roc

CELLS = 10_000_000  # numbers held at once while resampling


def require_sklearn() -> None:
    """Raise `ImportError` with what to install if the audit's statistics are missing."""
    if any(importlib.util.find_spec(name) is None for name in ("scipy", "sklearn")):
        raise ImportError(
            'The privacy audit needs scikit-learn and SciPy, which are not installed: pip install "hf-gradkit[audit]".'
        )


def clopper_pearson(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Return the exact two-sided interval of a share (Clopper and Pearson, 1934).

    >>> [round(100 * bound, 4) for bound in clopper_pearson(1, 1000)]
    [0.0025, 0.5558]

    Args:
        successes: how often it happened.
        trials: of how many; at least 1.
        level: confidence.

    Raises:
        ValueError: for counts that cannot be.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} of {trials} is no share.")
    require_sklearn()
    from scipy.stats import beta

    tail = (1 - level) / 2
    low = 0.0 if successes == 0 else float(beta.ppf(tail, successes, trials - successes + 1))
    high = 1.0 if successes == trials else float(beta.ppf(1 - tail, successes + 1, trials - successes))
    return low, high


def resample(
    members: np.ndarray, clusters: np.ndarray, rounds: int, seed: int, rows: int | None = None
) -> Iterator[np.ndarray]:
    """Yield how often each example counts in stratified, clustered bootstrap resamples. (b, m + n) each

    Members and non-members are drawn apart, whole documents at a time, with replacement.

    Args:
        members: which examples are members. (m + n,) bool
        clusters: the document of each example. (m + n,) int64
        rounds: how many resamples there are in all.
        seed: of the draw; the same seed gives the same resamples, so that scores can be compared pairwise.
        rows: resamples that are yielded at a time.
    """
    rng = np.random.default_rng(seed)
    rows = max(1, CELLS // len(members)) if rows is None else rows
    numbered = np.empty(len(members), dtype=np.int64)
    sizes = []
    for side in (False, True):  # a document of both sides is one of each
        found, number = np.unique(clusters[members == side], return_inverse=True)
        numbered[members == side] = number + sum(sizes)
        sizes.append(len(found))
    for start in range(0, rounds, rows):
        b = min(rows, rounds - start)
        counts = np.concatenate([rng.multinomial(size, np.full(size, 1 / size), size=b) for size in sizes], axis=1)
        yield counts[:, numbered].astype(np.float64)


def bootstrap(
    scores: np.ndarray,
    members: np.ndarray,
    clusters: np.ndarray,
    alphas: tuple[float, ...] = (),
    rounds: int = 1000,
    seed: int = 0,
) -> dict[Any, np.ndarray]:
    """Return the AUC ("auc") and the true positive rate at each of `alphas` in each resample. (rounds,) each"""
    found: dict[Any, list[np.ndarray]] = {name: [] for name in ("auc", *alphas)}
    for weights in resample(members, clusters, rounds, seed):
        false, true = roc(scores, members, weights)
        found["auc"].append(area(false, true))
        for alpha in alphas:
            found[alpha].append(rate_at(false, true, alpha)[0])
    return {name: np.concatenate(parts) for name, parts in found.items()}


def percentiles(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Return the interval that holds the middle share `level` of resampled values."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
