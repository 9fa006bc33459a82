"""(n, p)-discoverable extraction (arXiv 2410.19482): is a text likely to appear among n samples? Without sampling.

Letters: `q_t` the probability of token t when the model samples, temperature, top-k and top-p applied; `p_z` the
product of the suffix's q_t, the chance that one sample is the suffix. One teacher-forced forward pass gives it.
"""

import math

import numpy as np


def suffix_probability(q: np.ndarray) -> np.ndarray:
    """Return p_z, the product of the suffix's token probabilities. (n, s) -> (n,) float64

    Args:
        q: probability of each token of the suffix, 0 where sampling never gives it, and 1 beyond its end. (n, s)
    """
    return np.prod(np.asarray(q, dtype=np.float64), axis=1)


def chance_among(p_z: np.ndarray | float, n: int) -> np.ndarray:
    """Return 1 - (1 - p_z)^n, the chance that at least one of n samples is the suffix."""
    with np.errstate(divide="ignore"):
        return -np.expm1(n * np.log1p(-np.asarray(p_z, dtype=np.float64)))


def samples_needed(p_z: float, p: float) -> float:
    """Return the smallest n with 1 - (1 - p_z)^n >= p; infinite if the suffix is never sampled.

    >>> samples_needed(0.01, 0.5), samples_needed(0.001, 0.9)
    (69, 2302)
    """
    if p_z <= 0:
        return math.inf
    if p_z >= 1:
        return 1
    n = max(1, math.ceil(math.log1p(-p) / math.log1p(-p_z)))
    return n - 1 if n > 1 and chance_among(p_z, n - 1) >= p else n  # the quotient may round up over a whole number


def extracted(p_z: np.ndarray, n: int, p: float) -> np.ndarray:
    """Return which suffixes n samples give with a chance of at least p. (k,) -> (k,) bool

    Raises:
        ValueError: unless n is at least 1 and p lies in (0, 1].
    """
    if n < 1 or not 0 < p <= 1:
        raise ValueError(f"(n, p)-discoverable extraction needs n >= 1 and 0 < p <= 1, but n is {n} and p is {p}.")
    return chance_among(p_z, n) >= p
