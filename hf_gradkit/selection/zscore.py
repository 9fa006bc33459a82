"""Robust Z-scores, which put components on one scale: centred by the median, scaled by the median deviation."""

import math

import numpy as np

LIMIT = 3.0
OF_MEDIAN = 1.4826  # makes the median absolute deviation of a Gaussian its standard deviation
OF_MEAN = math.sqrt(math.pi / 2)  # and its mean absolute deviation


class RobustScale:
    """The scale of one component, fixed once, so that values that change later stay comparable.

        Z(v) = clip((v - median) / (1.4826 MAD), -3, 3)

    Where more than half of the values are the same, their median absolute deviation is 0 although they are not
    constant: the mean absolute deviation, times sqrt(pi / 2), takes its place. Constant values say nothing about any
    row: all of them get 0.

    Args:
        values: what sets median and spread, finite. (n,)
    """

    def __init__(self, values: np.ndarray):
        values = np.asarray(values, dtype=np.float64)
        self.median = float(np.median(values))
        deviations = np.abs(values - self.median)
        tiny = 1e-6 * abs(self.median)  # a constant that was computed in float32 is constant
        self.spread = OF_MEDIAN * float(np.median(deviations))
        if self.spread <= tiny:
            self.spread = OF_MEAN * float(deviations.mean())
        if deviations.max() <= tiny:
            self.spread = 0.0

    @property
    def is_constant(self) -> bool:
        """Whether all values that it was made of are the same."""
        return self.spread == 0.0

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Return the Z-scores of values, in -3 to 3. (...) float64"""
        if self.is_constant:
            return np.zeros(np.shape(values))
        return np.clip((np.asarray(values, dtype=np.float64) - self.median) / self.spread, -LIMIT, LIMIT)


def robust_z(values: np.ndarray) -> np.ndarray:
    """Return the robust Z-scores of values; see [`RobustScale`]. (n,) -> (n,) float64

    >>> robust_z(np.array([1.0, 2.0, 3.0, 4.0, 100.0])).round(3).tolist()
    [-1.349, -0.674, 0.0, 0.674, 3.0]
    """
    return RobustScale(values)(values)
