"""Autograd functions that compute what a layer's own backward would, and show the rows' parts on the way.

Each takes a `site`, the recorder's place for one layer, beside the layer's tensors. Being part of the graph, they need
no pairing of forwards and backwards: gradient checkpointing of both kinds, forwards without grad and references work
by themselves.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .layers import expanded
from .layers.head import Logits, head_backward


class LinearFunction(torch.autograd.Function):
    """y = x W^T + b, or y = x W + b for a transposed weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, site: Any, transposed: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.site, ctx.transposed = site, transposed
        return F.linear(x, weight.T if transposed else weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            w = weight.to(g.dtype)
            grad_x = (g @ (w.T if ctx.transposed else w)).to(x.dtype)
        if ctx.needs_input_grad[1]:
            grad_weight = ctx.site.linear(x.to(g.dtype), g).to(weight.dtype)
            grad_weight = grad_weight.T if ctx.transposed else grad_weight
        if ctx.needs_input_grad[2]:
            grad_bias = ctx.site.bias(g).to(weight.dtype)
        return grad_x, grad_weight, grad_bias, None, None


class EmbeddingTap(torch.autograd.Function):
    """Passes an embedding's output on; its backward sees the gradient of every row."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, ids: Tensor, site: Any, scale: float) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.site, ctx.scale = site, scale
        return out.view_as(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple:
        (ids,) = ctx.saved_tensors
        ctx.site.embedding(ids, g if ctx.scale == 1.0 else g * ctx.scale)
        return g, None, None, None


class ExpandFunction(torch.autograd.Function):
    """A weight of a norm, one copy a row; its backward sees each copy's gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, batch: Any, dimensions: int, site: Any, name: str) -> Tensor:
        ctx.batch, ctx.site, ctx.name = batch, site, name
        if batch.segments is None:
            return expanded.expand(weight, batch.rows, dimensions)
        return expanded.take(weight, batch.segments, dimensions)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple:
        batch = ctx.batch
        if batch.segments is None:
            rows = g.reshape(batch.rows, -1)
        else:
            rows = expanded.sum_segments(g, batch.segments, batch.rows)
        ctx.site.see(ctx.name, rows)
        return rows.sum(0), None, None, None, None


class HeadFunction(torch.autograd.Function):
    """TRL's fused head: its own forward, and a backward that goes over the vocabulary once for gradient and rows."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, labels, original, site, logits: Logits, arguments: tuple):
        ctx.set_materialize_grads(False)
        outputs = original.apply(hidden, weight, bias, labels, *arguments)
        ctx.save_for_backward(hidden, weight, bias, labels, outputs[0])
        ctx.site, ctx.logits = site, logits
        ctx.mark_non_differentiable(*(x for x in outputs[1:] if x is not None))
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor | None, *others: Tensor | None) -> tuple:
        hidden, weight, bias, labels, log_probs = ctx.saved_tensors
        if g is None:
            return (None,) * 8
        scored = g.nonzero()[:, 0]  # masked positions have no part in anything
        h = hidden[scored]
        sight = ctx.site.head(h, scored, len(g), len(weight))
        of_tokens = (labels[scored], log_probs[scored], g[scored])
        grads = head_backward(h, weight, bias, *of_tokens, ctx.logits, sight.rows, sight.see, sight.look)
        sight.end()
        grad_hidden = torch.zeros(hidden.shape, dtype=hidden.dtype, device=hidden.device)
        grad_hidden[scored] = grads[0].to(hidden.dtype)
        grad_bias = None if bias is None else grads[2].to(bias.dtype)
        return grad_hidden, grads[1].to(weight.dtype), grad_bias, None, None, None, None, None
