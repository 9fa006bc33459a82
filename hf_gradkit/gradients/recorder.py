"""`record_gradients`: per-row gradients of a model, from the backward pass that training already runs."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .. import _compat
from .._text import listing
from .batch import Batch
from .errors import GradientRecordError
from .functions import HeadFunction
from .layers.head import Logits
from .patches import forward_for, patch
from .site import Site
from .tally import MODES, Tally

_RECORDED = "_hf_gradkit_recorder"


@contextmanager
def record_gradients(
    model: nn.Module,
    parameters: str | Callable[[str], bool] | Iterable[str] = "trainable",
    mode: str = "gram",
    segments: Tensor | None = None,
) -> Iterator["Recorder"]:
    """Record what each row of a batch contributes to the gradient, while the ordinary backward pass runs.

    Inside the context, run a forward and a backward as always; then ask the recorder. Each new forward begins a new
    record. Rows are the rows of `input_ids`; the gradients are those of the loss that was backpropagated, with all of
    its own scaling. The gradients in `.grad` are what they would have been, up to rounding.

    >>> with record_gradients(model) as recorder:
    ...     model(input_ids=ids, labels=ids).loss.backward()
    ...     recorder.gram()  # (rows, rows)

    Args:
        model: any PyTorch model called with `input_ids` or `inputs_embeds`, wrapped for training or not.
        parameters: "trainable" for all that require a gradient, or names, or a function of a name that says which.
        mode: "gram" for inner products of all rows; "pairs" for norms, and row i with row i + n / 2; "norms".
        segments: for batches that are flattened into one row, the row that each token belongs to, -1 for padding.
            (tokens,)

    Raises:
        GradientRecordError: if no parameter that was asked for can be recorded, the model is compiled or already being
            recorded.
        ValueError: for an unknown mode, or names that are no parameters.
    """
    recorder = Recorder(model, parameters, mode, segments)
    try:
        recorder.install()
        yield recorder
    finally:
        recorder.remove()


class Recorder:
    """What [`record_gradients`] yields."""

    def __init__(self, model: nn.Module, parameters: Any, mode: str, segments: Tensor | None):
        if mode not in MODES:
            raise ValueError(f"`mode` must be one of {listing(MODES)}, but it is {mode!r}.")
        self._model = _unwrap(model)
        self._mode, self._segments = mode, segments
        self._stack = ExitStack()
        self._installed = False
        self.batch: Batch | None = None
        self.tally = Tally(mode, 0)
        self.unique: Tensor | None = None  # token ids of the batch, sorted
        self._stash: dict[str, Tensor] = {}
        self._seen: dict[tuple[int, str], str] = {}
        self._twice: str | None = None
        self._wanted = _wanted(self._model, parameters)
        self._sites: list[Site] = []
        self._head: Site | None = None
        self._uncovered = self._find_sites()

    # ---- what was found -----------------------------------------------------------------------------------------

    def gram(self, names: list[str] | None = None) -> Tensor:
        """Return the inner products of the rows' gradients. (rows, rows) float32

        Args:
            names: of parameters to take only; all that are recorded when None.

        Raises:
            GradientRecordError: if nothing was recorded, mode is not "gram", or a product is not finite.
        """
        if self._mode != "gram":
            raise GradientRecordError(
                f"`mode` is {self._mode!r}, which keeps no Gram matrix. Record with mode='gram'."
            )
        return self._matrix(names).float()

    def norms(self, names: list[str] | None = None) -> Tensor:
        """Return the norm of each row's gradient. (rows,) float32"""
        return self._matrix(names).diagonal().clamp(min=0).sqrt().float()

    def pair_products(self) -> Tensor:
        """Return the inner product of row i's gradient with row i + rows / 2's. (rows / 2,) float32

        Raises:
            GradientRecordError: if the number of rows is odd, or mode is "norms".
        """
        matrix = self._matrix(None)
        if self._mode == "norms" or len(matrix) % 2:
            raise GradientRecordError(
                f"Pairs of rows need mode 'pairs' or 'gram' and an even number of rows, chosen answers first; there "
                f"are {len(matrix)} rows in mode {self._mode!r}."
            )
        half = len(matrix) // 2
        return matrix[:half, half:].diagonal().float()

    def layer_norms(self) -> dict[str, Tensor]:
        """Return the norms of the rows' gradients of each parameter, by its name. (rows,) float32 each"""
        return {name: self.norms([name]) for name in self.tally.names()}

    @property
    def coverage(self) -> float:
        """Share of the parameters asked for that is recorded, by their number of entries."""
        missing = set(self._uncovered)
        total = sum(p.numel() for p in self._wanted.values())
        return sum(p.numel() for name, p in self._wanted.items() if name not in missing) / total

    @property
    def uncovered(self) -> list[str]:
        """Names of the parameters asked for that are not recorded."""
        return list(self._uncovered)

    def _matrix(self, names: list[str] | None) -> Tensor:
        if self._twice is not None:
            raise GradientRecordError(self._twice)
        return self.tally.matrix(names)

    # ---- what layers tell ---------------------------------------------------------------------------------------

    def is_on(self) -> bool:
        """Whether a layer's forward is to be recorded: with gradient, in a forward of the whole model."""
        return self._installed and self.batch is not None and torch.is_grad_enabled()

    def fired(self, site: Site, name: str) -> None:
        """Note that a parameter's gradient was seen: a second one would need what both have in common."""
        key = (id(site), name)
        if key in self._seen:
            self._twice = (
                f"{site.names[name]!r} was used more than once before the backward pass, and what its uses have in "
                "common is not recorded. Run one forward before each backward; for a layer that is shared within the "
                "model, leave it out with `parameters`."
            )
        self._seen[key] = site.names[name]

    def stash(self, name: str, part: Tensor) -> None:
        """Keep the head's part of a tied weight until the embedding's comes. (r, u, d)"""
        self._stash[name] = part

    def stashed(self, name: str) -> Tensor | None:
        """Return and drop what was kept."""
        return self._stash.pop(name, None)

    # ---- installing ---------------------------------------------------------------------------------------------

    def _find_sites(self) -> list[str]:
        """Find the layers that can be recorded; return the names of the parameters that cannot."""
        left = dict(self._wanted)
        by_parameter = {id(p): name for name, p in self._wanted.items()}
        head = _output_embeddings(self._model)
        users: dict[int, list[nn.Module]] = {}
        for module in self._model.modules():
            for parameter in module._parameters.values():
                if parameter is not None and id(parameter) in by_parameter:
                    users.setdefault(id(parameter), []).append(module)
        for module in self._model.modules():
            own = {
                n: by_parameter[id(p)]
                for n, p in module._parameters.items()
                if p is not None and id(p) in by_parameter
            }
            if not own or forward_for(module) is None:
                continue
            sharing = {id(m): m for n in own for m in users[id(module._parameters[n])]}
            tied = len(sharing) > 1
            if tied and not _is_tied_head(list(sharing.values()), head):
                continue
            site = Site(self, module, own, tied)
            self._sites.append(site)
            if module is head:
                self._head = site
            for name in own.values():
                left.pop(name, None)
        if not self._sites:
            raise GradientRecordError(
                f"None of the {len(self._wanted)} parameters asked for can be recorded: {listing(list(left)[:5])}"
                f"{', ...' if len(left) > 5 else ''}."
            )
        return list(left)

    def install(self) -> None:
        """Put the recorded forwards on the layers."""
        for module in self._model.modules():
            if getattr(module, "_compiled_call_impl", None) is not None or type(module).__name__ == "OptimizedModule":
                raise GradientRecordError(
                    "The model is compiled, and a compiled graph has no place to look into. Record it without "
                    "torch.compile (torch_compile=False)."
                )
        if getattr(self._model, _RECORDED, None) is not None:
            raise GradientRecordError("This model's gradients are being recorded already. One recorder at a time.")
        self._installed = True
        object.__setattr__(self._model, _RECORDED, self)
        self._stack.callback(object.__delattr__, self._model, _RECORDED)
        handle = self._model.register_forward_pre_hook(self._begin, with_kwargs=True)
        self._stack.callback(handle.remove)
        for site in self._sites:
            make = forward_for(site.module)
            self._stack.callback(patch(site.module, make(site, site.module.forward)))
        if self._head is not None:
            self._stack.enter_context(_compat.fused_head(self._fused_head))

    def remove(self) -> None:
        """Take everything off again; what was recorded stays, and a backward that comes only now is recorded yet."""
        self._stack.close()
        self._installed = False

    def _begin(self, module: nn.Module, positional: tuple, keywords: dict[str, Any]) -> None:
        if not torch.is_grad_enabled():
            return
        self.batch = Batch.of(positional, keywords, self._segments)
        self.tally = Tally(self._mode, self.batch.rows)
        self._seen, self._twice, self._stash = {}, None, {}

    def _fused_head(self, original: Any) -> Any:
        """Return what TRL's fused head applies instead of its own function while gradients are recorded."""
        recorder = self

        class Stand:
            @staticmethod
            def apply(hidden, weight, bias, labels, temperature, chunk, softcap=None, scale=1.0, *rest):
                site = recorder._head
                arguments = (temperature, chunk, softcap, scale, *rest)
                ours = weight is site.module.weight or not isinstance(weight, nn.Parameter)
                if not (recorder.is_on() and weight.requires_grad and ours):
                    return original.apply(hidden, weight, bias, labels, *arguments)
                logits = Logits(scale, softcap, 1 / temperature)
                return HeadFunction.apply(hidden, weight, bias, labels, original, site, logits, arguments)

        return Stand


def _unwrap(model: nn.Module) -> nn.Module:
    while isinstance(model, nn.parallel.DistributedDataParallel) or type(model).__name__ == "DeepSpeedEngine":
        model = model.module
    return model


def _wanted(model: nn.Module, parameters: Any) -> dict[str, nn.Parameter]:
    """Return the parameters asked for, each once, by name."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if isinstance(parameters, str):
        if parameters != "trainable":
            raise ValueError(
                f"`parameters` must be 'trainable', names, or a function of a name, but it is {parameters!r}."
            )
        chosen = trainable
    elif callable(parameters):
        chosen = {name: p for name, p in trainable.items() if parameters(name)}
    else:
        names = list(parameters)
        unknown = [name for name in names if name not in trainable]
        if unknown:
            raise ValueError(f"`parameters` names {unknown[0]!r}, which is not a trainable parameter of the model.")
        chosen = {name: trainable[name] for name in names}
    if not chosen:
        raise GradientRecordError("No parameter was asked for that requires a gradient. Nothing can be recorded.")
    return chosen


def _output_embeddings(model: nn.Module) -> nn.Module | None:
    try:
        return model.get_output_embeddings()
    except (AttributeError, NotImplementedError):  # no transformers model, or one without a head
        return None


def _is_tied_head(modules: list[nn.Module], head: nn.Module | None) -> bool:
    """Whether a weight is shared by exactly an embedding and the output head."""
    embeddings = [module for module in modules if isinstance(module, nn.Embedding)]
    return len(modules) == 2 and len(embeddings) == 1 and head in modules
