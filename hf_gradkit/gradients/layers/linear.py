"""Linear layers: y = x W^T, so that row r's gradient is G_r = sum_t g_rt x_rt^T, one (o, i) matrix a row.

Two ways to the same numbers:

    materialise   G_r itself, a slice of outputs at a time; their sum over rows is the gradient that training needs
                  anyway, so the statistics cost reading each matrix once
    ghost         <G_r, G_s> = sum_{t,t'} (x_rt . x_st') (g_rt . g_st'), from two Grams of tokens; no matrix at all

>>> x, g = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[3.0]]])   # one row, one token: G = [[3, 6]]
>>> ghost_pairs(x, g, torch.tensor([[0, 0]]))
tensor([45.])
"""

from collections.abc import Callable

import torch
from torch import Tensor

# Bytes that the per-row matrices of one slice may take.
BUDGET = 64 * 2**20
# Reading and writing a number costs about as much as this many multiplications.
TRAFFIC = 40


def ghost_is_cheaper(x: Tensor, g: Tensor) -> bool:
    """Return whether norms and fixed pairs cost less as Grams of tokens than as matrices, by the shapes."""
    tokens, i, o = x.shape[1], x.shape[2], g.shape[2]
    return tokens * tokens * (i + o) < TRAFFIC * i * o


def materialise(x: Tensor, g: Tensor, see: Callable[[Tensor], None]) -> Tensor:
    """Show the gradient of each row, a slice at a time, and return their sum.

    Args:
        x: inputs. (r, t, i)
        g: output gradients. (r, t, o)
        see: is given slices of the rows' gradients, (r, k); together they are the whole.

    Returns:
        The gradient of the weight. (o, i)
    """
    rows, _, i = x.shape
    o = g.shape[2]
    step = max(1, min(o, BUDGET // (rows * i * x.element_size())))
    total = x.new_empty(o, i)
    for start in range(0, o, step):
        per_row = torch.bmm(g[:, :, start : start + step].transpose(1, 2), x)  # (r, step, i)
        see(per_row.flatten(1))
        torch.sum(per_row, dim=0, out=total[start : start + step])
    return total


def ghost_pairs(x: Tensor, g: Tensor, pairs: Tensor) -> Tensor:
    """Return <G_a, G_b> of given pairs of rows, without a matrix the size of the weight.

    Args:
        x: inputs. (r, t, i)
        g: output gradients. (r, t, o)
        pairs: row numbers. (n, 2)

    Returns:
        Inner products. (n,)
    """
    a, b = pairs[:, 0], pairs[:, 1]
    inputs = torch.bmm(x[a], x[b].transpose(1, 2)).float()  # (n, t, t)
    outputs = torch.bmm(g[a], g[b].transpose(1, 2)).float()
    return (inputs * outputs).sum(dim=(1, 2))


def weight_gradient(x: Tensor, g: Tensor) -> Tensor:
    """Return the gradient of the weight in one product. (r, t, i), (r, t, o) -> (o, i)"""
    return g.flatten(0, 1).T @ x.flatten(0, 1)


def project(x: Tensor, g: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Return u_m^T G_r v_m of each row and probe, without G.

    Args:
        x: inputs. (r, t, i)
        g: output gradients. (r, t, o)
        u: probes of the outputs, in any dtype. (o, k)
        v: probes of the inputs. (i, k)

    Returns:
        One number a row and probe. (r, k)
    """
    return ((x @ v.to(x.dtype)).float() * (g @ u.to(g.dtype)).float()).sum(1)
