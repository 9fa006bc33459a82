"""Embeddings: row r's gradient has g_rt added at token id_rt, so only the batch's own ids have entries."""

import torch
from torch import Tensor


def scatter(ids: Tensor, g: Tensor, unique: Tensor, padding_idx: int | None = None) -> Tensor:
    """Return each row's gradient at the ids that occur in the batch.

    Args:
        ids: token ids. (r, t)
        g: output gradients. (r, t, d)
        unique: the batch's ids, sorted. (u,)
        padding_idx: an id whose embedding gets no gradient, or None.

    Returns:
        Gradients of the embeddings of `unique`. (r, u, d)
    """
    rows, d = len(g), g.shape[-1]
    if padding_idx is not None:
        g = g * (ids != padding_idx)[..., None].to(g.dtype)
    place = torch.searchsorted(unique, ids) + len(unique) * torch.arange(rows, device=ids.device)[:, None]  # (r, t)
    out = g.new_zeros(rows * len(unique), d)
    return out.index_add_(0, place.flatten(), g.reshape(-1, d)).view(rows, len(unique), d)


def project(ids: Tensor, g: Tensor, u: Tensor, v: Tensor, padding_idx: int | None = None) -> Tensor:
    """Return u_m^T G_r v_m of each row and probe, where G_r has g_rt added at row id_rt.

    Args:
        ids: token ids. (r, t)
        g: output gradients. (r, t, d)
        u: probes of the vocabulary. (vocabulary, k)
        v: probes of the features. (d, k)
        padding_idx: an id whose embedding gets no gradient, or None.

    Returns:
        One number a row and probe. (r, k)
    """
    if padding_idx is not None:
        g = g * (ids != padding_idx)[..., None].to(g.dtype)
    return ((g @ v.to(g.dtype)).float() * u[ids].float()).sum(1)
