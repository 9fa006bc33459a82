"""All figures of the next token's distribution in one pass over the head's products, when no gradient is asked for.

TRL's fused head has all of them but one, how much log-probabilities vary over the vocabulary. The product with the
head's weight is the larger part of a small model's forward, so it is not made a second time for that.

Letters: n positions, d hidden size, v tokens of the vocabulary; z logits, p their softmax, y the label.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from .. import _compat
from ..gradients.layers.head import Logits

# What TRL's fused head can give, in the order in which it does.
OF_TRL = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
VARIANCE = "log_prob_variance"
TILES = {"cpu": (256, 2048)}  # positions and tokens at a time: what stays in a core's cache
TILE = (4096, 16384)  # on accelerators, what keeps them busy


@contextmanager
def head_in_one_pass(variance: bool) -> Iterator[list[Tensor]]:
    """Collect, for each call of TRL's fused head, the variance of log p of the tokens that it scores. (k,) each

    Without gradients all figures come from `head_figures`; otherwise TRL's function makes those that it has, and the
    variance costs a second product with the head's weight.

    Args:
        variance: whether it is wanted; nothing is collected otherwise.
    """
    further = (VARIANCE,) if variance else ()
    found: list[Tensor] = []

    def replace(original):
        class Stand:
            @staticmethod
            def apply(hidden, weight, bias, labels, temperature, chunk, softcap=None, scale=1.0, outputs=(), *rest):
                logits = Logits(scale, softcap, 1 / temperature)
                if torch.is_grad_enabled():
                    results = original.apply(
                        hidden, weight, bias, labels, temperature, chunk, softcap, scale, outputs, *rest
                    )
                    if variance:
                        found.append(head_figures(hidden, weight, bias, labels, logits, further)[VARIANCE])
                    return results
                figures = head_figures(hidden, weight, bias, labels, logits, (*outputs, *further))
                if variance:
                    found.append(figures[VARIANCE])
                return tuple(figures.get(name) for name in OF_TRL)

        return Stand

    with _compat.fused_head(replace):
        yield found


@torch.no_grad()
def head_figures(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, logits: Logits, outputs: Sequence[str]
) -> dict[str, Tensor]:
    """Return figures of the next token's distribution at each position, the log-probability of the label among them.

    Products are in the type of the hidden states, or of autocast; everything after them is in float32.

    Args:
        hidden: last hidden states. (n, d)
        weight: of the head. (v, d)
        bias: of the head, or None. (v,)
        labels: the tokens that come next. (n,) int64
        logits: from raw products to logits.
        outputs: of "entropy" = -sum_k p_k log p_k, "log_sum_sq_probs" = log sum_k p_k^2, "mean_logits" = mean_k z_k,
            "is_top1" (the first of equal tokens is the top) and "log_prob_variance" = sum_k p_k (log p_k)^2 -
            (sum_k p_k log p_k)^2, in nats squared.

    Returns:
        By name, "log_probs" and what was asked for. (n,) float32 each, "is_top1" bool
    """
    rows, columns = TILES.get(hidden.device.type, TILE)
    parts = [_Figures(labels[start : start + rows], outputs) for start in range(0, len(hidden), rows)]
    for number, part in enumerate(parts):
        h = hidden[number * rows : (number + 1) * rows]
        for start in range(0, len(weight), columns):
            raw = h @ weight[start : start + columns].to(h.dtype).T
            if bias is not None:
                raw += bias[start : start + columns].to(raw.dtype)
            part.add(_logits(raw, logits), start)
    found = [part.result(len(weight)) for part in parts]
    names = found[0] if found else {"log_probs": None, **dict.fromkeys(outputs)}
    empty = torch.zeros(0, device=hidden.device)
    return {name: torch.cat([of[name] for of in found]) if found else empty for name in names}


def _logits(raw: Tensor, logits: Logits) -> Tensor:
    raw = raw.float()
    plain = logits.softcap is None and logits.scale * logits.inverse_temperature == 1
    return raw if plain else logits(raw)[0]


class _Figures:
    """Sums over the tokens that were seen so far, relative to the largest logit among them: no difference cancels."""

    def __init__(self, labels: Tensor, outputs: Sequence[str]):
        n, device = len(labels), labels.device
        self.labels, self.outputs = labels, outputs
        self.peak = torch.full((n, 1), -torch.inf, device=device)
        self.top = torch.full((n,), -1, device=device)
        self.at_label = torch.zeros(n, device=device)
        # With a = z - peak and e = exp(a): sums of e, e a, e a^2; of e^2; of z.
        self.total, self.first, self.second, self.squares, self.plain = (
            torch.zeros(n, dtype=torch.float64, device=device) for _ in range(5)
        )

    def add(self, z: Tensor, start: int) -> None:
        """Take in the logits of some more tokens, from `start` on; they are overwritten. (n, s)"""
        inside = (self.labels >= start) & (self.labels < start + z.shape[1])
        place = (self.labels - start).clamp(0, z.shape[1] - 1)
        self.at_label = torch.where(inside, z.gather(1, place[:, None])[:, 0], self.at_label)
        if "mean_logits" in self.outputs:
            self.plain += z.sum(1)
        highest, where = z.max(1, keepdim=True)
        self.top = torch.where((highest > self.peak)[:, 0], where[:, 0] + start, self.top)
        highest = torch.maximum(self.peak, highest)
        self._move(highest)
        z -= self.peak
        e = z.exp()
        self.total += e.sum(1)
        if "entropy" in self.outputs or VARIANCE in self.outputs:
            self.first += _dot(e, z)
        if "log_sum_sq_probs" in self.outputs:
            self.squares += _dot(e, e)
        if VARIANCE in self.outputs:
            self.second += _dot(e, z.square_())

    def _move(self, peak: Tensor) -> None:
        """Make the sums relative to another peak."""
        by = torch.where(self.total > 0, (self.peak - peak)[:, 0].double(), 0.0)  # at first there is nothing to move
        self.second = (self.second + 2 * by * self.first + by * by * self.total) * by.exp()
        self.first = (self.first + by * self.total) * by.exp()
        self.squares = self.squares * (2 * by).exp()
        self.total = self.total * by.exp()
        self.peak = peak

    def result(self, vocabulary: int) -> dict[str, Tensor]:
        """Return the figures of all tokens that were seen."""
        log_total = self.total.log()
        mean = self.first / self.total
        found = {"log_probs": (self.at_label - self.peak[:, 0]).double() - log_total}
        every = {
            "entropy": lambda: log_total - mean,
            "log_sum_sq_probs": lambda: self.squares.log() - 2 * log_total,
            "mean_logits": lambda: self.plain / vocabulary,
            VARIANCE: lambda: (self.second / self.total - mean.square()).clamp(min=0),
        }
        found |= {name: make() for name, make in every.items() if name in self.outputs}
        found = {name: values.float() for name, values in found.items()}
        return {**found, "is_top1": self.top == self.labels} if "is_top1" in self.outputs else found


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of each row, without the matrix of products. (n, s) twice -> (n,)"""
    return torch.bmm(a[:, None], b[:, :, None])[:, 0, 0]
