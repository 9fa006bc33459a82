"""What the Gram matrix of a batch says about the batch: noise, and which sources of data pull against each other.

Letters: g_e gradient of example e; G its mean over the examples, the step; S their covariance. For e != f the mean of
<g_e, g_f> is an unbiased estimate of |G|^2, whatever the batch, and the mean of |g_e|^2 one of |G|^2 + tr S. Sums of
both, kept apart, can be added up over micro-batches, ranks and steps before anything is divided.

    noise scale          B = tr S / |G|^2                     examples (arXiv 1812.06162, equation 2.9)
    norm test            b+ = tr S / (eta^2 |G|^2)            examples (arXiv 2402.11215)
    cosine of sources    <G_a, G_b> / (|G_a| |G_b|)

>>> sums = NoiseSums.of(torch.tensor([[2.0, 1.0], [1.0, 4.0]]))     # |G|^2 = 1, |G|^2 + tr S = 3
>>> sums.noise_scale
2.0
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class NoiseSums:
    """Sums over examples that the noise scale is made of.

    Attributes:
        squares: of |g_e|^2.
        examples: number of them.
        products: of <g_e, g_f> over ordered pairs of different examples.
        pairs: number of them.
    """

    squares: float = 0.0
    examples: int = 0
    products: float = 0.0
    pairs: int = 0

    @classmethod
    def of(cls, gram: Tensor) -> "NoiseSums":
        """Return the sums of one micro-batch from its Gram matrix. (n, n)"""
        n, squares = len(gram), float(gram.diagonal().double().sum())
        return cls(squares, n, float(gram.double().sum()) - squares, n * (n - 1))

    def __add__(self, other: "NoiseSums") -> "NoiseSums":
        return NoiseSums(
            self.squares + other.squares,
            self.examples + other.examples,
            self.products + other.products,
            self.pairs + other.pairs,
        )

    @property
    def noise_scale(self) -> float | None:
        """B, in examples; None while the estimate of |G|^2 is not above zero, or there is no pair."""
        if not self.pairs or not self.examples:
            return None
        signal = self.products / self.pairs
        return (self.squares / self.examples - signal) / signal if signal > 0 else None


GroupSums = dict[tuple[str, str], tuple[float, int]]  # of products between two sources, and their number


def group_sums(gram: Tensor, groups: Sequence[str]) -> GroupSums:
    """Return the sums of <g_e, g_f>, e != f, and their numbers for each pair of sources, in order of their names.

    Args:
        gram: (n, n).
        groups: the source of each example. n names
    """
    names = sorted(set(groups))
    member = torch.tensor([[group == name for name in names] for group in groups], dtype=torch.float64).to(gram.device)
    off = gram.double() - torch.diag(gram.diagonal().double())
    sums = member.T @ off @ member
    counts = member.sum(0)
    numbers = torch.outer(counts, counts) - torch.diag(counts)
    return {
        (a, b): (float(sums[i, j]), int(numbers[i, j]))
        for i, a in enumerate(names)
        for j, b in enumerate(names)
        if i <= j and numbers[i, j] > 0
    }


def add_group_sums(parts: Iterable[GroupSums]) -> GroupSums:
    """Add up sums of several micro-batches, ranks or steps."""
    total: GroupSums = {}
    for part in parts:
        for key, (value, number) in part.items():
            before = total.get(key, (0.0, 0))
            total[key] = (before[0] + value, before[1] + number)
    return total


def group_cosines(sums: GroupSums) -> dict[tuple[str, str], float]:
    """Return the cosine of each two sources' mean gradients.

    Sources whose own |G_a|^2 is not estimated above zero yet are left out. With few examples an estimate can lie
    outside [-1, 1]; it is cut off there.
    """
    means = {key: value / number for key, (value, number) in sums.items() if number}
    return {
        (a, b): max(-1.0, min(1.0, mean / (means[a, a] * means[b, b]) ** 0.5))
        for (a, b), mean in means.items()
        if a != b and means.get((a, a), 0) > 0 and means.get((b, b), 0) > 0
    }


@dataclass(frozen=True)
class OutlierRule:
    """Which norms are far beyond the others: by the median and the spread of the logarithms of recent ones.

    Args:
        spreads: robust standard deviations of the logarithm (1.4826 MAD) above the median.
        least: times the median at least, where norms hardly spread.
        enough: norms that must be there before any is judged.
    """

    spreads: float = 5.0
    least: float = 3.0
    enough: int = 32

    def threshold(self, norms: Tensor) -> float | None:
        """Return the norm above which one is an outlier; None while there are too few. (n,)"""
        logs = norms[norms > 0].double().log()
        if len(logs) < self.enough:
            return None
        median = logs.median()
        spread = 1.4826 * (logs - median).abs().median()
        return float(median.exp() * max(self.least, float((self.spreads * spread).exp())))
