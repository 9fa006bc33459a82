"""Sampling in proportion to gradient norms (PA&DA, arXiv 2302.14772), and the weights that keep it unbiased."""

import numpy as np


def norm_probabilities(norms: np.ndarray, share: float) -> np.ndarray:
    """Return the probability with which each row is drawn: p_i = t g_i / sum g + (1 - t) / N. (N,) -> (N,)

    >>> norm_probabilities(np.array([1.0, 3.0]), 0.5).tolist()
    [0.375, 0.625]

    Args:
        norms: g_i, of the rows' gradients, at least 0.
        share: t, in 0 to 1; the paper lets it grow from 0 to 1 over training. Below 1, every row can be drawn.

    Raises:
        ValueError: for norms that are negative, not finite or all 0, or t out of its domain.
    """
    norms = np.asarray(norms, dtype=np.float64)
    if not 0 <= share <= 1:
        raise ValueError(f"`norm_share` must be in 0 to 1, but it is {share!r}.")
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms >= 0)))
    if len(bad):
        raise ValueError(f"The gradient norms of rows {bad[:10].tolist()} are negative or not finite.")
    if norms.sum() == 0:
        raise ValueError("All gradient norms are 0, so nothing tells the rows apart. Check what was scored.")
    return share * norms / norms.sum() + (1 - share) / len(norms)


def draw(probabilities: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Return rows drawn with replacement. (size,) int64"""
    return np.random.default_rng([seed, 1]).choice(len(probabilities), size=size, p=probabilities).astype(np.int64)


def unbiased_weights(probabilities: np.ndarray) -> np.ndarray:
    """Return 1 / (N p_i), with which the mean over drawn rows is, in expectation, the mean over all. (N,) -> (N,)

    Rows that are never drawn have none: infinity.
    """
    with np.errstate(divide="ignore"):
        return 1.0 / (len(probabilities) * np.asarray(probabilities, dtype=np.float64))
