"""From tokens to examples and back. Letters: B rows, T positions, n examples; a flattened batch has B = 1.

A position is where a prediction is made: T is one less than the tokens where labels are shifted. `segments` (T,) says
which example a position of a flattened batch belongs to, -1 for padding; None means that row i is example i.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100


def sum_by_example(values: Tensor, segments: Tensor | None, n: int) -> Tensor:
    """Sum what is given for each position over each example. (B, T) -> (n,)"""
    if segments is None:
        return values.flatten(1).sum(1)
    kept = segments >= 0
    return values.new_zeros(n).index_add(0, segments[kept], values.flatten()[kept])


def spread_to_positions(values: Tensor, segments: Tensor | None) -> Tensor:
    """Give every position its example's value. (n,) -> (B, 1) or (1, T), which broadcast against (B, T)"""
    if segments is None:
        return values[:, None]
    return torch.where(segments >= 0, values[segments.clamp(min=0)], 0)[None]


def position_segments(segments: Tensor | None, shifted: bool, device: torch.device) -> Tensor | None:
    """Return the segments of positions from those of tokens: position t predicts token t + 1 where shifted."""
    if segments is None:
        return None
    return (segments[1:] if shifted else segments).to(device)


def label_tokens(labels: Tensor, segments: Tensor | None, n: int, shifted: bool) -> Tensor:
    """Count the label tokens of each example; a class label is one token. (B, T + 1), (B, T) or (n,) -> (n,)"""
    if labels.dim() == 1:
        return labels.ne(IGNORED).long()
    counted = (labels[:, 1:] if shifted else labels).ne(IGNORED).long()
    return sum_by_example(counted, position_segments(segments, shifted, labels.device), n)


def token_cross_entropy(logits: Tensor, labels: Tensor, shifted: bool) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy at each position, zero where there is no label, and where there is one.

    Args:
        logits: (B, T + 1, vocabulary) shifted, (B, T, classes), or (n, classes).
        labels: (B, T + 1), (B, T) or (n,), with -100 where there is no label.
        shifted: position t predicts label t + 1.

    Returns:
        Losses (B, T) in float32, and a mask of the same shape; a class label is one position.
    """
    if labels.dim() == 1:
        logits, labels = logits[:, None], labels[:, None]
    if shifted:
        # Shift the labels and not the logits: slicing logits would copy them.
        labels = F.pad(labels, (0, 1), value=IGNORED)[:, 1:]
    labels = labels.to(logits.device)
    losses = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none", ignore_index=IGNORED)
    losses, mask = losses.view_as(labels), labels != IGNORED
    return (losses[:, :-1], mask[:, :-1]) if shifted else (losses, mask)
