"""How far the workers of a data-parallel run agree, and how far they should (arXiv 2602.14462).

Letters: N workers; l_k loss and g_k gradient of worker k before they are averaged, of b examples; G their expected
value, S the covariance of an example's gradient, B = tr S / |G|^2 the noise scale.

    loss dispersion            sqrt( mean_k (l_k - mean l)^2 )      healthy: sd(l_k) sqrt((N - 1) / N)
    gradient-norm dispersion   std_k |g_k|
    direction consistency      mean over pairs of cos(g_j, g_k)     healthy: b / (b + B)

A healthy run is neither at 0 nor at 1: what counts is the ratio to the healthy value, which must come from what varies
within a worker - its micro-batches, its examples, its own figure over time - and not from how workers differ.

>>> mean_cosine(torch.tensor([1.0, 1.0]), torch.tensor(0.5**0.5))      # two unit gradients at a right angle
tensor(0., dtype=torch.float64)
"""

import math
from collections import deque
from statistics import fmean, stdev

import torch
from torch import Tensor

from .projections import signs


def dispersion(values: Tensor) -> float:
    """Return the standard deviation over the workers, around their own mean. (N,)"""
    return float(values.double().std(correction=0))


def mean_cosine(norms: Tensor, norm_of_mean: Tensor) -> Tensor:
    """Return the norm-weighted mean cosine of all pairs of workers, exactly, from norms alone.

        (N^2 |gbar|^2 - sum |g_k|^2) / ((sum |g_k|)^2 - sum |g_k|^2)

    Args:
        norms: |g_k|. (N,)
        norm_of_mean: |gbar|. ()
    """
    norms = norms.double()
    squares = norms.square().sum()
    return (len(norms) ** 2 * norm_of_mean.double().square() - squares) / (norms.sum().square() - squares)


def pairwise_cosines(projected: Tensor) -> Tensor:
    """Return the cosines of all pairs of workers, from their gradients' projections. (N, k) -> (N, N)"""
    return torch.nn.functional.cosine_similarity(projected[:, None].double(), projected[None].double(), dim=-1)


class NoiseWithin:
    """The healthy direction consistency, from what varies within workers: mean squared norms at two sizes of batch.

    A mean of n examples has E |g|^2 = |G|^2 + tr S / n, so two different n give |G|^2 and tr S. Two healthy workers
    have E <g_j, g_k> = |G|^2 as well.

    Args:
        window: steps that are summed.
        recent: of these, steps that the expected cosine of now is taken from.
    """

    def __init__(self, window: int, recent: int = 8):
        self._signals: deque[float] = deque(maxlen=window)
        self._traces: deque[float] = deque(maxlen=window)
        self._products: deque[float] = deque(maxlen=window)
        self._recent = recent

    def update(self, small: float, of_small: float, large: float, of_large: float, products: float) -> None:
        """Take in a step.

        Args:
            small, of_small: mean squared norm of gradients that are means of a few examples, and how many.
            large, of_large: the same of whole workers.
            products: mean of <g_j, g_k> over pairs of workers.
        """
        if of_large <= of_small:
            return
        trace = (small - large) / (1 / of_small - 1 / of_large)
        self._traces.append(trace)
        self._signals.append(large - trace / of_large)
        self._products.append(products)

    @property
    def steps(self) -> int:
        """Number of steps that are summed."""
        return len(self._signals)

    @property
    def noise_scale(self) -> float | None:
        """B, in examples; None while it is unknown, or |G|^2 is not estimated above zero."""
        signal = sum(list(self._signals)[-self._recent :])
        trace = sum(list(self._traces)[-self._recent :])
        return max(trace, 0.0) / signal if signal > 0 else None

    def expected_cosine(self, examples: float) -> float | None:
        """Return the healthy cosine of two workers with this many examples each: b / (b + B)."""
        noise = self.noise_scale
        return None if noise is None else examples / (examples + noise)

    @property
    def ratio(self) -> float | None:
        """What workers have in common over what they should have, of the whole window; None while unknown."""
        signal = sum(self._signals)
        return sum(self._products) / signal if signal > 0 else None

    def shortfall(self, least: int = 8) -> float | None:
        """Return by how many standard errors workers have less in common than they should; None in the first steps."""
        missing = [signal - product for signal, product in zip(self._signals, self._products, strict=True)]
        if len(missing) < least:
            return None
        error = stdev(missing) / len(missing) ** 0.5
        return fmean(missing) / error if error else 0.0


class ChangeWithin:
    """The healthy dispersion of a figure, from how each worker's own figure changes over time.

    The second difference l_k(t) - 2 l_k(t - 1) + l_k(t - 2) knows no trend and no constant difference between workers,
    and its mean square is 6 times the variance of l_k. What moves all workers together from step to step counts into
    it: the model, which they share, and examples that they share. Where they are known to share none, the common part
    is the model's and is taken out: of l_k(t) - l_k(t - 1), less its mean over the workers, the mean square is 2
    (N - 1) / N times the variance. Workers with the same examples so have a ratio below 1, down to 0.

    Args:
        window: steps.
        least: steps before anything is said.
    """

    def __init__(self, window: int, least: int = 8):
        self._least = least
        self._values: deque[Tensor] = deque(maxlen=window)
        self._apart: deque[bool] = deque(maxlen=window)
        self._healthy: deque[float] = deque(maxlen=window - 2)  # squared dispersions
        self._found: deque[float] = deque(maxlen=window - 2)

    def update(self, values: Tensor, apart: bool = False) -> None:
        """Take in a step.

        Args:
            values: figures, one a worker. (N,)
            apart: whether the workers' examples are known to differ.
        """
        n = len(values)
        self._values.append(values.double())
        self._apart.append(apart)
        if len(self._values) < 3:
            return
        before, middle, last = list(self._values)[-3:]
        if self._apart[-1] and self._apart[-2]:
            change = last - middle
            self._healthy.append(float((change - change.mean()).square().mean()) / 2)
        else:
            change = last - 2 * middle + before
            self._healthy.append(float(change.square().mean()) / 6 * (n - 1) / n)
        self._found.append(float(last.var(correction=0)))

    @property
    def workers(self) -> int:
        """Number of workers, of which there are figures."""
        return len(self._values[-1])

    @property
    def expected(self) -> float | None:
        """The healthy dispersion; None in the first steps."""
        return fmean(self._healthy) ** 0.5 if len(self._values) >= self._least else None

    @property
    def ratio(self) -> float | None:
        """The dispersion over the healthy one, of the same steps; None in the first, and where nothing varies."""
        expected = self.expected
        return fmean(self._found) ** 0.5 / expected if expected else None

    def offset(self, least: int = 16, most: int | None = None) -> tuple[int, float, float] | None:
        """Return the worker whose figure is furthest from the others'; None in the first steps.

        Args:
            least: how many steps are too few before.
            most: steps that count as independent of each other, for the standard error; None for all.

        Returns:
            The worker, by how many standard errors, and its mean figure less the others'.
        """
        if len(self._values) < least:
            return None
        values = torch.stack(list(self._values))  # (steps, N)
        deviations = values - values.mean(1, keepdim=True)
        error = deviations.std(0) / min(len(deviations), most or len(deviations)) ** 0.5
        mean = deviations.mean(0)
        z = (mean / error.clamp(min=torch.finfo(error.dtype).tiny)).abs()
        worst, n = int(z.argmax()), values.shape[1]
        return worst, float(z[worst]), float(mean[worst]) * n / (n - 1)


class GradientSketch:
    """A seeded sketch of a whole gradient: k sums of its entries, each with a random sign.

    Entry (r, c) of a matrix has the sign s_r t_c and counts into sum r m + c mod k: a tensor sketch, whose signs take
    o + i bytes and not o i, with m near the golden section of k to spread short rows. Inner products of two sketches
    are unbiased estimates of the gradients', with an error of k^(-1/2) to (2 / k)^(1/2) of the product of the norms.

    Args:
        size: k.
        seed: of the signs, the same on all workers.
    """

    def __init__(self, size: int, seed: int = 0):
        self.size, self._seed = size, seed
        self._shift = next(m for m in range(max(1, int(0.618 * size)), 0, -1) if math.gcd(m, size) == 1)
        self._signs: dict[tuple[str, str], Tensor] = {}

    def __call__(self, name: str, gradient: Tensor) -> Tensor:
        """Return a parameter's part; the parts of all parameters add up. (...) -> (k,) float32"""
        gradient = gradient.detach()
        if not gradient.numel():
            return gradient.new_zeros(self.size, dtype=torch.float32)
        matrix = gradient.flatten(1) if gradient.dim() > 1 else gradient.reshape(1, -1)
        rows, columns = matrix.shape
        s, t = self._draw(name, "rows", rows, matrix), self._draw(name, "columns", columns, matrix)
        period = min(rows, self.size)  # rows that count into the same sums are added up first: most of the work
        whole = rows - rows % period
        added = torch.einsum(
            "qp,qpc->pc", s[:whole].view(-1, period), matrix[:whole].view(-1, period, columns)
        )  # (p, c)
        added[: rows - whole] += s[whole:, None] * matrix[whole:]
        folded = _sums(added.float() * t.float(), self.size)  # (p, k)
        wide = torch.nn.functional.pad(folded, (0, self._shift))  # p (k + m) + j = p m + j mod k
        return _sums(wide.flatten(), self.size)

    def _draw(self, name: str, side: str, size: int, like: Tensor) -> Tensor:
        """Return the signs of a parameter's rows or columns, in the dtype of `like`. (size,)"""
        drawn = self._signs.get((name, side))
        if drawn is None or drawn.device != like.device:
            drawn = signs(name, f"sketch {side}", size, 1, self._seed, like.device)[:, 0]
            self._signs[name, side] = drawn
        return drawn.to(like.dtype)


def _sums(values: Tensor, k: int) -> Tensor:
    """Return the sums of the last dimension's entries by their place mod k. (..., n) -> (..., k)"""
    n = values.shape[-1]
    return torch.nn.functional.pad(values, (0, -n % k)).unflatten(-1, (-1, k)).sum(-2)
