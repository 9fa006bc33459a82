"""Which row of a batch each token belongs to, in every shape that a layer may see the batch in."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import GradientRecordError


@dataclass
class Batch:
    """The batch of one forward pass.

    Attributes:
        rows: number of rows: examples, or answers.
        size: leading dimension of the tensors: `rows`, or 1 for a flattened batch.
        tokens: length of a row, or of the flattened batch.
        segments: the row of each token of a flattened batch, -1 for padding, or None. (tokens,)
        labels: the labels given to the model, or None. (size, tokens)
        shifted: whether `labels` are those of the position itself.
    """

    rows: int
    size: int
    tokens: int
    segments: Tensor | None = None
    labels: Tensor | None = None
    shifted: bool = False

    @classmethod
    def of(cls, positional: tuple, keywords: dict[str, Any], segments: Tensor | None) -> "Batch":
        """Read a batch off the arguments of a forward pass.

        Raises:
            GradientRecordError: if there are no token ids or embeddings, or segments do not fit them.
        """
        tensor = next(
            (keywords[name] for name in ("input_ids", "inputs_embeds") if isinstance(keywords.get(name), Tensor)),
            positional[0] if positional and isinstance(positional[0], Tensor) else None,
        )
        if tensor is None or tensor.dim() < 2:
            raise GradientRecordError(
                "The model was called without `input_ids` or `inputs_embeds`, so the rows of the batch are unknown."
            )
        size, tokens = tensor.shape[:2]
        labels, shifted = keywords.get("labels"), False
        if isinstance(keywords.get("shift_labels"), Tensor):
            labels, shifted = keywords["shift_labels"], True
        if segments is None:
            return cls(size, size, tokens, None, labels, shifted)
        segments = segments.to(tensor.device)
        if size != 1 or segments.shape != (tokens,):
            raise GradientRecordError(
                f"`segments` has shape {tuple(segments.shape)} and the batch {size} row(s) of {tokens} tokens. "
                "Segments are for flattened batches: one row, and one segment number a token."
            )
        return cls(int(segments.max()) + 1, 1, tokens, segments, labels, shifted)

    def by_row(self, x: Tensor, name: str) -> Tensor:
        """Sort what a layer sees by row. (size, tokens, ..., k) or (size * tokens, k) -> (r, t, k)

        Raises:
            GradientRecordError: if its tokens cannot be told apart by row, naming the layer.
        """
        k = x.shape[-1]
        if x.dim() > 2 and x.shape[0] == self.size:
            x = x.reshape(self.size, -1, k)
        elif x.dim() == 2 and x.shape[0] == self.size * self.tokens:
            x = x.view(self.size, self.tokens, k)
        elif x.dim() == 2 and x.shape[0] == self.size and self.segments is None:
            x = x[:, None]
        else:
            raise GradientRecordError(
                f"{name!r} sees a tensor of shape {tuple(x.shape)}, of which it cannot be told what belongs to which "
                f"row of a batch of {self.size} x {self.tokens} tokens (experts of a mixture, for one). Leave it out "
                "with `parameters`."
            )
        if self.segments is None:
            return x
        if x.shape[1] % self.tokens:
            raise GradientRecordError(f"{name!r} sees {x.shape[1]} of {self.tokens} tokens of a flattened batch.")
        rows = self.segments.repeat_interleave(x.shape[1] // self.tokens)
        return Sorter(rows, self.rows)(x[0])

    def rows_of_scored(self, n: int) -> Tensor:
        """Return the row of each of n scored tokens, as TRL's fused head gets them. (n,)

        They are all positions but the last of each row, all positions, or those with a label.
        """
        device = self.labels.device if self.labels is not None else None
        first = 0 if self.shifted else 1
        width = self.tokens - first
        positions = torch.arange(self.size * width, device=device)
        if self.segments is None:
            rows = positions // width
        else:  # a position scores the token after it, which is of the same segment or has no label
            rows = self.segments[:width]
        if n == len(rows):
            return rows
        if self.labels is not None:
            mask = (self.labels[:, first:] != -100).flatten()
            if n == int(mask.sum()):
                return rows[mask.to(rows.device)]
        raise GradientRecordError(
            f"The output head scored {n} tokens of a batch of {self.size} x {self.tokens}, and it is unknown which."
        )


def documents_of(keywords: dict[str, Any]) -> Tensor | None:
    """Return which document each token of a flattened batch belongs to, -1 for padding; None for other batches.

    Documents begin where `position_ids` start anew, as TRL and transformers mark them. (tokens,)

    Args:
        keywords: what the model was called with.
    """
    positions = keywords.get("position_ids")
    if not isinstance(positions, Tensor) or positions.dim() != 2 or len(positions) != 1:
        return None
    starts = positions[0] == 0
    if int(starts.sum()) < 2:
        return None
    number = starts.long().cumsum(0) - 1
    # Padding at the end has position 0 throughout: each such token would be a document of its own.
    lengths = torch.bincount(number)
    last = int((lengths > 1).nonzero().max()) if bool((lengths > 1).any()) else -1
    return torch.where(number <= last, number, -1) if last >= 0 else None


class Sorter:
    """Sorts tokens by row, padded with zeros.

    Args:
        rows_of_tokens: the row of each token, -1 for none. (n,)
        rows: number of rows.
    """

    def __init__(self, rows_of_tokens: Tensor, rows: int):
        real = (rows_of_tokens >= 0).nonzero()[:, 0]
        order = real[torch.argsort(rows_of_tokens[real], stable=True)]
        row = rows_of_tokens[order]
        counts = torch.bincount(row, minlength=rows)
        first = counts.cumsum(0) - counts
        self._order = order
        self._place = row * max(1, int(counts.max())) + torch.arange(len(row), device=row.device) - first[row]
        self._shape = (rows, max(1, int(counts.max())))

    def __call__(self, x: Tensor) -> Tensor:
        """Sort tokens. (n, k) -> (r, t, k)"""
        out = x.new_zeros(self._shape[0] * self._shape[1], x.shape[-1])
        out[self._place] = x[self._order]
        return out.view(*self._shape, x.shape[-1])
