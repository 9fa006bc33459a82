"""Each parameter's gradient as this process computed it, before anything is averaged, on any backend.

Autograd shows a hook on a parameter the whole gradient of a backward pass before it is added to `.grad`, and so before
DDP, FSDP2 or DeepSpeed reduce it. Under FSDP2 the parameters that a model lists are shards, and others stand in their
places while a layer runs: these are looked for in the forward.

>>> with own_gradients(model, lambda name, gradient: norms.update({name: gradient.norm()})):
...     model(input_ids=ids, labels=ids).loss.backward()
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from .. import _compat
from .parameters import output_embeddings, unwrap

See = Callable[[str, Tensor], None]


@contextmanager
def own_gradients(model: nn.Module, see: See) -> Iterator[None]:
    """Show the gradients of this process, each as soon as the backward pass has it.

    Args:
        model: may be wrapped by DDP or DeepSpeed, or sharded by FSDP2.
        see: is given the name of a trainable parameter and its gradient, and returns None. Once a backward pass,
            except for a weight that is used in several reentrant checkpoints, or under FSDP2 by TRL's fused head and
            the embedding: its parts add up to its gradient.
    """
    with ExitStack() as stack:
        hooks = _Hooks(unwrap(model), see, stack)
        hooks.on_all()
        if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
            hooks.in_forwards()
        yield


class _Hooks:
    """The hooks on a model's parameters, each put on once and taken off by `stack`."""

    def __init__(self, model: nn.Module, see: See, stack: ExitStack):
        self._model, self._see, self._stack = model, see, stack
        self._modules = {prefix: module for prefix, module in model.named_modules() if module._parameters}
        self._hooked: dict[int, Tensor] = {}  # kept, and with them their ids

    def on_all(self, *_: Any) -> None:
        """Hook what is whole now, of all layers."""
        for prefix, module in self._modules.items():
            self._on(prefix, module)

    def in_forwards(self) -> None:
        """Hook what FSDP2 puts in the shards' places, once it is there."""
        # What the outermost layer holds is whole from the model's forward on.
        self._stack.callback(self._model.register_forward_pre_hook(self.on_all).remove)
        for prefix, module in self._modules.items():
            handle = module.register_forward_pre_hook(lambda m, _, prefix=prefix: self._on(prefix, m))
            self._stack.callback(handle.remove)
        # TRL's fused head never runs the head's forward: it takes the weight, or gathers it.
        head = output_embeddings(self._model)
        if head is not None:
            known = {id(parameter): name for name, parameter in self._model.named_parameters()}
            names = {side: known.get(id(parameter)) for side, parameter in head._parameters.items()}
            self._stack.enter_context(_compat.fused_head(partial(self._showing_head, head, names)))

    def _on(self, prefix: str, module: nn.Module) -> None:
        for own, parameter in module._parameters.items():
            if parameter is not None:
                self._put(f"{prefix}.{own}" if prefix else own, parameter)

    def _put(self, name: str, parameter: Tensor) -> None:
        if not parameter.requires_grad or id(parameter) in self._hooked or isinstance(parameter, DTensor):
            return
        handle = parameter.register_hook(partial(self._see, name))
        if parameter.is_leaf:  # and here to stay
            self._hooked[id(parameter)] = parameter
            self._stack.callback(handle.remove)

    def _showing_head(self, head: nn.Module, names: dict[str, str | None], original: Any) -> Any:
        """Return TRL's fused head, with hooks on what it is given.

        Args:
            head: of this model; another one's weights pass by.
            names: of the head's weight and bias, where they have one.
            original: what TRL applies.
        """

        class Stand:
            @staticmethod
            def apply(hidden: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Any:
                for side, given in (("weight", weight), ("bias", bias)):
                    ours = given is not None and (given is head._parameters.get(side) or not given.is_leaf)
                    if ours and names.get(side):
                        self._put(names[side], given)
                return original.apply(hidden, weight, bias, *rest)

        return Stand
