"""Weights that multiply or shift elementwise - of norms, biases: one copy a row, so that autograd keeps rows apart.

Whatever a norm does with its weight (Gemma adds 1 to it, others cast it), its forward runs unchanged on a weight with
one entry a row; the gradient that comes back has one entry a row as well.
"""

import torch
from torch import Tensor


def expand(weight: Tensor, rows: int, dimensions: int) -> Tensor:
    """Return the weight once a row, ready to be broadcast. (d,) -> (rows, 1, ..., 1, d) with `dimensions` axes"""
    return weight.view(*[1] * (dimensions - 1), -1).expand(rows, *[-1] * (dimensions - 1))


def take(weight: Tensor, segments: Tensor, dimensions: int) -> Tensor:
    """Return the weight once a token of a flattened batch. (d,) -> (1, t, 1, ..., d); segments (t,)"""
    return weight.view(*[1] * (dimensions - 1), -1).expand(1, len(segments), *[-1] * (dimensions - 2))


def sum_segments(g: Tensor, segments: Tensor, rows: int) -> Tensor:
    """Sum gradients over the tokens of each segment; tokens of segment -1 are padding. (1, t, ..., d) -> (rows, d)"""
    per_token = g.reshape(len(segments), -1, g.shape[-1]).sum(1)  # (t, d)
    real = segments >= 0
    return g.new_zeros(rows, g.shape[-1]).index_add_(0, segments[real], per_token[real])


def row_sums(g: Tensor) -> Tensor:
    """Return the gradient of a bias of each row: its output gradients summed over tokens. (r, t, o) -> (r, o)"""
    return g.sum(dim=1, dtype=torch.promote_types(g.dtype, torch.float32))
