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
        self._tokens: list[Tensor] = []  # of the micro-batches whose loss is divided by the tokens of all workers
        self._divisor = 1.0
        self.examples_of_last = 0

    def close(self) -> None:
        """Take the hooks off."""
        self._stack.close()

    def hashes(self) -> list[int]:
        """Return the hash of each example of the step."""
        return torch.cat(self._hashes).tolist() if self._hashes else []

    def loss(self) -> float | None:
        """Return this worker's loss of the step; None where neither trainer nor model says one.

        A sum over its tokens that is divided by the tokens of all workers follows the lengths of its examples: of
        such a loss the mean over its own tokens is returned.
        """
        if not self._losses:
            return None
        total = float(torch.stack(self._losses).sum())
        if len(self._tokens) == len(self._losses):
            own = float(torch.stack(self._tokens).sum())
            return total * self._divisor / own if own else None
        return total if self._of_trainer else total / len(self._losses)

    def _wrap(self, trainer: Any) -> None:
        original = trainer.training_step

        shifts, args = getattr(trainer, "_loss_shifts_labels", True), trainer.args

        def training_step(
            model: Any, inputs: Any, num_items_in_batch: Any = None, *positional: Any, **keywords: Any
        ) -> Tensor:
            if args.average_tokens_across_devices:  # else the divisor is this worker's own
                self._count(inputs, num_items_in_batch, shifts, args.world_size)
            loss = original(model, inputs, num_items_in_batch, *positional, **keywords)
            self._losses.append(loss.detach().float())
            return loss

        own = vars(trainer).get("training_step")
        trainer.training_step = training_step
        if own is None:
            self._stack.callback(vars(trainer).pop, "training_step", None)
        else:  # somebody else's, put on this trainer
            self._stack.callback(setattr, trainer, "training_step", own)

    def _count(self, inputs: Any, divisor: Any, shifts: bool, workers: int) -> None:
        """Note the scored tokens of a micro-batch whose loss is a sum divided by those of all workers."""
        get = getattr(inputs, "get", lambda name: None)
        labels = get("shift_labels")
        if labels is None:
            labels = get("labels")
            labels = labels[..., 1:] if shifts and isinstance(labels, Tensor) else labels
        if divisor is not None and isinstance(labels, Tensor):
            self._tokens.append(labels.ne(-100).sum())
            self._divisor = float(divisor) / workers

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
                self._count(keywords, keywords.get("num_items_in_batch"), True, 1)
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
