"""Cuts the policy's log-probabilities out of TRL's preference loss, so that the loss can be worked on pair by pair."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

# What of the policy's outputs TRL's loss is differentiated through.
CUT = ("log_probs", "aux_loss")


class PolicyTap:
    """Stands in for the policy while a preference loss is computed, on leaves cut off from the model.

    Used as a context manager around the loss. `join` puts the loss, and its gradient at the cut, back on the model's
    graph: the model's backward pass then runs as it would have.

    Args:
        model: the policy, as wrapped for training.
        see: called with the outputs, cut, before anybody else sees them; may change them.
        mutates: the loss changes tensors in place that its own backward pass needs.
    """

    def __init__(self, model: Any, see: Callable[[Any], None], mutates: bool = False):
        self._model = model
        self._see = see
        self._mutates = mutates
        self._after_forward = ExitStack()
        self._live: dict[str, Tensor] = {}
        self._leaves: dict[str, Tensor] = {}

    def __enter__(self) -> "PolicyTap":
        return self

    def __exit__(self, *error: Any) -> None:
        self._after_forward.close()

    def __call__(self, *positional: Any, **keywords: Any) -> Any:
        outputs = self._model(*positional, **keywords)
        if "log_probs" not in outputs:  # a forward for something else than the loss
            return outputs
        for name in CUT:
            live = outputs.get(name)
            if isinstance(live, Tensor) and live.requires_grad:
                self._live[name], self._leaves[name] = live, live.detach().requires_grad_()
                outputs[name] = self._leaves[name]
        self._see(outputs)
        if self._mutates and self._leaves:
            # Only the loss's own few operations run in here, not the model's.
            self._after_forward.enter_context(torch.autograd.graph.allow_mutation_on_saved_tensors())
        return outputs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def join(self, loss: Tensor, balancing: Any = None) -> Tensor:
        """Return the loss's value, with its gradient at the cut handed on to the model. () -> ()

        Args:
            loss: of the cut outputs.
            balancing: says what multiplies the gradient of each row's log-probabilities, or None.
        """
        if not self._leaves:  # evaluation
            return loss
        leaves = list(self._leaves.values())
        gradients = torch.autograd.grad(loss, leaves, materialize_grads=True)
        self._after_forward.close()
        loss, gradients = loss.detach(), dict(zip(self._leaves, gradients, strict=True))
        if balancing is not None:
            joined, g = self._reattach(loss, gradients), gradients["log_probs"]
            factors = balancing.factors(len(g) // 2, lambda: self._backward(joined))
            gradients["log_probs"] = g * factors.to(g)[:, None]
        return self._reattach(loss, gradients)

    def _reattach(self, loss: Tensor, gradients: dict[str, Tensor]) -> Tensor:
        for name, gradient in gradients.items():
            live = self._live[name]
            loss = loss + (gradient * (live - live.detach())).sum()
        return loss

    def _backward(self, loss: Tensor) -> None:
        """Run the model's backward pass; neither `.grad` nor the hooks that reduce it over ranks take notice."""
        parameters = [p for p in self._model.parameters() if p.requires_grad]
        torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
