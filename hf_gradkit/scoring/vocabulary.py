"""A figure that TRL's fused head does not have: how much log-probabilities vary over the vocabulary."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .. import _compat
from ..gradients.layers.head import BUDGET, Logits

VARIANCE = "log_prob_variance"


@contextmanager
def collect_variance() -> Iterator[list[Tensor]]:
    """Collect, for each call of TRL's fused head, the variance of log p of the tokens that it scores. (k,) each

    It costs a second product with the head's weight.
    """
    found: list[Tensor] = []

    def replace(original):
        class Stand:
            @staticmethod
            def apply(hidden, weight, bias, labels, temperature, chunk, softcap=None, scale=1.0, *rest):
                results = original.apply(hidden, weight, bias, labels, temperature, chunk, softcap, scale, *rest)
                logits = Logits(scale, softcap, 1 / temperature)
                found.append(log_prob_variance(hidden, weight, bias, logits))
                return results

        return Stand

    with _compat.fused_head(replace):
        yield found


@torch.no_grad()
def log_prob_variance(hidden: Tensor, weight: Tensor, bias: Tensor | None, logits: Logits) -> Tensor:
    """Return the variance of log p over the vocabulary, each token weighted by its probability p.

    Args:
        hidden: last hidden states of n positions. (n, d)
        weight: of the head. (v, d)
        bias: of the head, or None. (v,)
        logits: from raw products to logits.

    Returns:
        Variance (n,) float32, in nats squared: that of the logits, from which log p differs by a constant.
    """
    h = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    step = max(64, BUDGET // (2 * h.element_size() * max(1, len(h))))
    peak = h.new_full((len(h), 1), -torch.inf)
    moments = torch.zeros(3, len(h), dtype=torch.float64, device=h.device)  # sums of e, e z, e z^2 with e = exp(z)
    for start in range(0, len(weight), step):
        raw = h @ weight[start : start + step].to(h.dtype).T
        if bias is not None:
            raw += bias[start : start + step].to(raw.dtype)
        z = logits(raw)[0]  # (n, s)
        higher = torch.maximum(peak, z.amax(1, keepdim=True))
        moments = _moved(moments, (peak - higher)[:, 0].double())
        z, peak = z - higher, higher
        e = z.exp()
        moments += torch.stack([e.sum(1), (e * z).sum(1), (e * z * z).sum(1)])
    total, first, second = moments
    return (second / total - (first / total).square()).clamp(min=0).float()


def _moved(moments: Tensor, by: Tensor) -> Tensor:
    """Return sums of e, e z, e z^2 for values that all moved by as much. (3, n), (n,)"""
    total, first, second = moments
    by = torch.where(total > 0, by, 0.0)  # nothing was summed yet, and `by` is minus infinity
    return torch.stack([total, first + by * total, second + 2 * by * first + by * by * total]) * by.exp()
