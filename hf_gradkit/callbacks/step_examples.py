"""Which examples a micro-batch holds: by the trainer's columns where there are some, else by their tokens."""

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ..gradients.batch import documents_of


def token_hash(ids: Sequence[int]) -> str:
    """Return the name of an example without an id: a hash of its tokens, padding left out."""
    return "tokens:" + hashlib.blake2b(repr([int(i) for i in ids]).encode(), digest_size=6).hexdigest()


class ExampleNames:
    """Names and sources of the examples of one step's micro-batches.

    Args:
        model: as callbacks get it; its forwards are looked at.
        trainer: ours says the examples of a step in `step_examples`; others, and None, do not.
        pairs: whether batches are [chosen; rejected].
    """

    def __init__(self, model: nn.Module, trainer: Any, pairs: bool):
        self._trainer, self._pairs = trainer, pairs
        self._hashes: list[str] = []
        self._stack = ExitStack()
        self._stack.callback(model.register_forward_pre_hook(self._see, with_kwargs=True).remove)

    def close(self) -> None:
        """Take the hook off."""
        self._stack.close()

    def of(self, number: int, examples: int) -> tuple[list[str], list[str] | None]:
        """Return the names of the examples of the micro-batch that was just backpropagated, and their sources.

        Args:
            number: of the micro-batch within the step.
            examples: how many it has.
        """
        infos = getattr(self._trainer, "step_examples", None)
        if infos and number < len(infos) and len(infos[number]) == examples:
            info = infos[number]
            names = info.example_id if info.example_id is not None else info.index.tolist()
            return [str(name) for name in names], info.group
        hashes = self._hashes if len(self._hashes) == examples else ["unknown"] * examples
        return hashes, None

    def _see(self, module: nn.Module, positional: tuple, keywords: dict[str, Any]) -> None:
        ids = keywords.get("input_ids", positional[0] if positional else None)
        if not torch.is_grad_enabled() or not isinstance(ids, Tensor) or ids.dim() != 2:
            return
        mask, segments = keywords.get("attention_mask"), documents_of(keywords)
        if segments is not None:
            rows = [ids[0][segments.to(ids.device) == i] for i in range(int(segments.max()) + 1)]
        elif isinstance(mask, Tensor) and mask.shape == ids.shape:
            rows = [row[real.bool()] for row, real in zip(ids, mask, strict=True)]
        else:
            rows = list(ids)
        rows = [row.tolist() for row in rows]
        if self._pairs and len(rows) % 2 == 0:
            half = len(rows) // 2
            rows = [a + b for a, b in zip(rows[:half], rows[half:], strict=True)]
        self._hashes = [token_hash(row) for row in rows]
