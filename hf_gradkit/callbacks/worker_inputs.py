"""What one worker is given in a step, and what it loses on it: hashes of its examples, and its own loss."""

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ..gradients.batch import documents_of
from .shard_check import row_hashes


class WorkerInputs:
    """Sees the forwards of a model's training steps.

    Args:
        model: as callbacks get it.
        trainer: says the loss of its training steps; without one, the model's own or its log-probabilities do.
        pairs: whether batches are [chosen; rejected], two rows an example.
    """

    def __init__(self, model: nn.Module, trainer: Any, pairs: bool):
        self._pairs = pairs
        self._stack = ExitStack()
        self._stack.callback(model.register_forward_hook(self._see, with_kwargs=True).remove)
        self._of_trainer = trainer is not None
        if trainer is not None:
            self._wrap(trainer)
        self.begin()

    def begin(self) -> None:
        """Forget what was seen: a new step begins."""
        self._hashes: list[Tensor] = []
        self._losses: list[Tensor] = []
        self.examples_of_last = 0

    def close(self) -> None:
        """Take the hooks off."""
        self._stack.close()

    def hashes(self) -> list[int]:
        """Return the hash of each example of the step."""
        return torch.cat(self._hashes).tolist() if self._hashes else []

    def loss(self) -> float | None:
        """Return this worker's loss of the step; None where neither trainer nor model says one."""
        if not self._losses:
            return None
        total = float(torch.stack(self._losses).sum())
        return total if self._of_trainer else total / len(self._losses)

    def _wrap(self, trainer: Any) -> None:
        original = trainer.training_step

        def training_step(*positional: Any, **keywords: Any) -> Tensor:
            loss = original(*positional, **keywords)
            self._losses.append(loss.detach().float())
            return loss

        own = vars(trainer).get("training_step")
        trainer.training_step = training_step
        if own is None:
            self._stack.callback(vars(trainer).pop, "training_step", None)
        else:  # somebody else's, put on this trainer
            self._stack.callback(setattr, trainer, "training_step", own)

    def _see(self, module: nn.Module, positional: tuple, keywords: dict[str, Any], output: Any) -> None:
        if not torch.is_grad_enabled():
            return
        ids = keywords.get("input_ids", positional[0] if positional else None)
        if isinstance(ids, Tensor) and ids.dim() == 2:
            hashes = row_hashes(ids, keywords.get("attention_mask"), documents_of(keywords))
            if self._pairs and len(hashes) % 2 == 0:
                chosen, rejected = hashes.chunk(2)
                hashes = chosen * 31 + rejected
            self._hashes.append(hashes.cpu())
            self.examples_of_last = len(hashes)
        if not self._of_trainer:
            loss = _own_loss(output)
            if loss is not None:
                self._losses.append(loss)


def _own_loss(output: Any) -> Tensor | None:
    """Return the loss that a model's output tells of, as a mean over tokens."""
    get = getattr(output, "get", lambda name: None)
    if isinstance(get("loss"), Tensor):
        return output.loss.detach().float()
    log_probs, mask = get("log_probs"), get("label_mask")
    if isinstance(log_probs, Tensor) and isinstance(mask, Tensor):
        return -(log_probs.detach().float() * mask).sum() / mask.sum().clamp(min=1)
    return None
