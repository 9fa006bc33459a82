"""The gradient-free check of a prediction: the same batch forward again after the optimizer step."""

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn


class ObservedForward:
    """One forward of the monitored step, to be run again when the step is done.

    Its random state is kept, so that dropout hides the same units both times.

    Args:
        positional, keywords: what the model was called with.
        log_probs: of its tokens, zero where masked. (rows, t)
        random: state of the generators before the forward.
    """

    def __init__(self, positional: tuple, keywords: dict[str, Any], log_probs: Tensor, random: Any):
        self._positional, self._keywords, self._random = positional, keywords, random
        self._before = log_probs.detach().double().sum(1)

    @torch.no_grad()
    def changes(self, model: nn.Module) -> Tensor:
        """Return by how much each row's summed log-probability has changed. (rows,) float64"""
        device = self._before.device
        with torch.random.fork_rng([device] if device.type != "cpu" else [], device_type=device.type):
            set_random_state(self._random, device)
            output = model(*self._positional, **self._keywords)
        return output.log_probs.double().sum(1) - self._before


def random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return the state of the generators that a forward on a device may use."""
    of_device = None if device.type == "cpu" else getattr(torch, device.type).get_rng_state(device)
    return torch.get_rng_state(), of_device


def set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    """Set what `random_state` returned."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        getattr(torch, device.type).set_rng_state(state[1], device)


class ForwardWatch:
    """Sees a model's training forwards: the gradient by their log-probabilities, and what is needed to run them again.

    Args:
        model: as callbacks get it.
        keeps: keep the forwards for `ObservedForward`.
        on_missing: called when the output has no log-probabilities with a gradient.
    """

    def __init__(self, model: nn.Module, keeps: bool, on_missing: Any):
        self.gradient: Tensor | None = None
        self.forwards: list[ObservedForward] = []
        self._keeps, self._on_missing = keeps, on_missing
        self._random: Any = None
        self._stack = ExitStack()
        if keeps:
            self._stack.callback(model.register_forward_pre_hook(self._before).remove)
        self._stack.callback(model.register_forward_hook(self._after, with_kwargs=True).remove)

    def close(self) -> None:
        """Take the hooks off."""
        self._stack.close()

    def _before(self, module: nn.Module, positional: tuple) -> None:
        if torch.is_grad_enabled():
            self._random = random_state(next(module.parameters()).device)

    def _after(self, module: nn.Module, positional: tuple, keywords: dict[str, Any], output: Any) -> None:
        if not torch.is_grad_enabled():
            return
        log_probs = output.get("log_probs") if hasattr(output, "get") else None
        if log_probs is None or not log_probs.requires_grad:
            self._on_missing()
            return
        self.gradient = None
        log_probs.register_hook(self._see)
        if self._keeps:
            self.forwards.append(ObservedForward(positional, keywords, log_probs, self._random))

    def _see(self, gradient: Tensor) -> None:
        self.gradient = gradient.detach()
