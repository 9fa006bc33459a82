"""The output head under a log-probability: z = f(scale h W^T) k, log p_y = z_y - logsumexp(z), at temperature 1 / k.

Row r's gradient of W is sum_t d_rt h_rt^T with d_rt = c_rt (onehot(y_rt) - p_rt) k dz/d(hW), where c is the loss's
gradient by log p. It is computed a slice of the vocabulary at a time: never the logits of the whole batch, never the
head's gradient of all rows.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

BUDGET = 64 * 2**20  # bytes that logits and per-row gradients of one slice may take


@dataclass(frozen=True)
class Logits:
    """How logits come from hidden states: z = inverse_temperature * cap(scale * (h W^T + bias))."""

    scale: float = 1.0
    softcap: float | None = None
    inverse_temperature: float = 1.0

    def __call__(self, raw: Tensor) -> tuple[Tensor, Tensor | float]:
        """Return the logits and their derivative by the raw ones. (n, v) -> (n, v), (n, v) or a number"""
        if self.softcap is None:
            factor = self.scale * self.inverse_temperature
            return raw * factor, factor
        bent = torch.tanh(raw * (self.scale / self.softcap))
        return bent * (self.softcap * self.inverse_temperature), (1 - bent * bent) * (
            self.scale * self.inverse_temperature
        )


def head_backward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    log_probs: Tensor,
    coefficients: Tensor,
    logits: Logits,
    rows: Callable[[Tensor], Tensor],
    see: Callable[[Tensor, Tensor, int], None] | None,
    look: Callable[[Tensor, int], None] | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the gradients of hidden states, weight and bias, and show each row's part of the last two.

    Args:
        hidden: last hidden states of n scored tokens. (n, d)
        weight: of the head. (v, d)
        bias: of the head, or None. (v,)
        labels: the tokens that were scored. (n,)
        log_probs: their log-probabilities. (n,)
        coefficients: gradient of the loss by each log-probability. (n,)
        logits: from raw products to logits.
        rows: sorts tokens by row, padded with zeros. (n, k) -> (r, t, k)
        see: is given slices of the rows' gradients of weight (r, s, d) and bias (r, s) and the first token of the
            slice; None when nobody needs the rows' own.
        look: is given slices of d itself (n, s) and the first token of the slice.

    Returns:
        Gradients of `hidden` (n, d), `weight` (v, d) and `bias` (v,) or None, float32 at least.
    """
    n, d = hidden.shape
    h = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    w = weight.to(h.dtype)
    c = coefficients.to(h.dtype)[:, None]
    at_label = (h * w[labels]).sum(1) if bias is None else (h * w[labels]).sum(1) + bias[labels].to(h.dtype)
    log_z = logits(at_label)[0] - log_probs.to(h.dtype)
    sorted_hidden = rows(h)  # (r, t, d)
    step = max(64, BUDGET // (h.element_size() * max(2 * n, sorted_hidden.shape[0] * d)))
    grad_hidden, grad_weight = torch.zeros_like(h), torch.empty_like(w)
    grad_bias = None if bias is None else w.new_empty(len(w))
    for start in range(0, len(w), step):
        part = w[start : start + step]
        raw = h @ part.T
        if bias is not None:
            raw += bias[start : start + step].to(raw)
        z, slope = logits(raw)
        delta = -torch.exp(z - log_z[:, None])  # (n, s)
        inside = ((labels >= start) & (labels < start + step)).nonzero()[:, 0]
        delta[inside, labels[inside] - start] += 1
        delta *= c
        delta *= slope
        grad_hidden.addmm_(delta, part)
        if grad_bias is not None:
            grad_bias[start : start + step] = delta.sum(0)
        if look is not None:
            look(delta, start)
        if see is None:
            torch.mm(delta.T, h, out=grad_weight[start : start + step])
            continue
        by_row = rows(delta)  # (r, t, s)
        per_row = torch.bmm(by_row.transpose(1, 2), sorted_hidden)  # (r, s, d)
        see(per_row, by_row.sum(1), start)
        torch.sum(per_row, dim=0, out=grad_weight[start : start + step])
    return grad_hidden, grad_weight, grad_bias
