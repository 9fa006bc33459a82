"""`record_gradients`: per-row gradients of a model, from the backward pass that training already runs."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .. import _compat
from .._text import listing
from .batch import Batch, documents_of
from .errors import GradientRecordError
from .functions import HeadFunction
from .layers.head import Logits
from .parameters import find_sites, output_embeddings, unwrap, wanted
from .patches import forward_for, patch, whole_shape
from .projections import Probes, Sketch
from .site import Site
from .tally import MODES, Tally

_RECORDED = "_hf_gradkit_recorder"


@contextmanager
def record_gradients(
    model: nn.Module,
    parameters: str | Callable[[str], bool] | Iterable[str] = "trainable",
    mode: str = "gram",
    segments: Tensor | None = None,
    projections: int = 0,
    seed: int = 0,
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
        mode: "gram" for inner products of all rows; "pairs" for norms, and row i with row i + n / 2; "norms";
            "projections" for nothing but projections, which need no row's own gradient and are the cheapest.
        segments: for batches that are flattened into one row, the row that each token belongs to, -1 for padding.
            (tokens,)
        projections: number of random probes of each row's gradient; 0 for none. With them, inner products with rows
            of other batches, checkpoints and processes can be estimated:
            `hf_gradkit.gradients.projections.estimate`.
        seed: of the probes.

    Raises:
        GradientRecordError: if no parameter that was asked for can be recorded, the model is compiled or already being
            recorded.
        ValueError: for an unknown mode, or names that are no parameters.
    """
    recorder = Recorder(model, parameters, mode, segments, projections, seed)
    try:
        recorder.install()
        yield recorder
    finally:
        recorder.remove()


class Recorder:
    """What [`record_gradients`] yields."""

    def __init__(
        self,
        model: nn.Module,
        parameters: Any = "trainable",
        mode: str = "gram",
        segments: Tensor | None = None,
        projections: int = 0,
        seed: int = 0,
    ):
        self._model = unwrap(model)
        self._mode, self._segments, self._probes = "projections", segments, None
        self._documents = self._stopped = False
        self.require(mode, projections, seed)
        self._stack = ExitStack()
        self._installed = False
        self.is_shared = False  # whether several read it; see `shared_recorder`
        self.batch: Batch | None = None
        self.lenient, self.refused = False, ""  # whether a batch of unknown rows passes by, and why the last one did
        self.tally = Tally(mode, 0)
        self.sketch: Sketch | None = None
        self.unique: Tensor | None = None  # token ids of the batch, sorted
        self._stash: dict[str, Tensor] = {}
        self._seen: dict[tuple[int, str], str] = {}
        self._received: set[str] = set()  # parameters that got a gradient, from wherever
        self._twice: str | None = None
        self._wanted = wanted(self._model, parameters)
        self._sites = find_sites(self, self._model, self._wanted)
        head = output_embeddings(self._model)
        self._head = next((site for site in self._sites if site.module is head), None)
        covered = {name for site in self._sites for name in site.names.values()}
        self._uncovered = [name for name in self._wanted if name not in covered]

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

    def projections(self) -> Tensor:
        """Return the rows' projections: inner products of two are unbiased estimates of the gradients'. (rows, k)

        Raises:
            GradientRecordError: if nothing was recorded, or without `projections`.
        """
        self._check()
        if self.sketch is None:
            raise GradientRecordError("Nothing was recorded, or no projections: ask for them with `projections`.")
        return self.sketch.matrix()

    @property
    def coverage(self) -> float:
        """Share of the parameters asked for that is recorded, by their number of entries."""
        missing = set(self._uncovered)
        sizes = {name: math.prod(whole_shape(p)) for name, p in self._wanted.items()}
        return sum(size for name, size in sizes.items() if name not in missing) / sum(sizes.values())

    @property
    def uncovered(self) -> list[str]:
        """Names of the parameters asked for that are not recorded."""
        return list(self._uncovered)

    def _matrix(self, names: list[str] | None) -> Tensor:
        self._check()
        return self.tally.matrix(names)

    def _check(self) -> None:
        """Raise if a part of the gradient is not in the record."""
        if self._twice is not None:
            raise GradientRecordError(self._twice)
        elsewhere = sorted(self._received - set(self._seen.values()))
        if elsewhere:
            raise GradientRecordError(
                f"{listing(elsewhere)} got a gradient from outside of its layer's forward, such as from "
                "`F.linear(x, layer.weight)`, which is not recorded. Call the layer itself, or leave the parameter "
                "out with `parameters`."
            )

    # ---- what layers tell ---------------------------------------------------------------------------------------

    @property
    def exact(self) -> bool:
        """Whether inner products are kept, and not projections only."""
        return self._mode != "projections" and not self._stopped

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

    def _receive(self, name: str) -> None:
        """Note that a parameter got a gradient in a backward pass that is recorded."""
        if self.batch is not None and not self._stopped:
            self._received.add(name)

    def stash(self, name: str, part: Tensor) -> None:
        """Keep the head's part of a tied weight until the embedding's comes. (r, u, d)"""
        self._stash[name] = part

    def stashed(self, name: str) -> Tensor | None:
        """Return and drop what was kept."""
        return self._stash.pop(name, None)

    # ---- installing ---------------------------------------------------------------------------------------------

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
        covered = {name for site in self._sites for name in site.names.values()}
        for name in covered:  # of a parameter that FSDP2 shards, no gradient is seen here
            handle = self._wanted[name].register_hook(lambda gradient, name=name: self._receive(name))
            self._stack.callback(handle.remove)
        if self._head is not None:
            self._stack.enter_context(_compat.fused_head(self._fused_head))

    def require(self, mode: str, projections: int = 0, seed: int = 0, documents: bool = False) -> None:
        """Keep at least this much of the forwards to come; what is kept is never reduced.

        Args:
            mode, projections, seed: as for `record_gradients`.
            documents: the documents of a flattened batch are its rows.

        Raises:
            ValueError: for an unknown mode, or none without projections.
        """
        if mode not in MODES:
            raise ValueError(f"`mode` must be one of {listing(MODES)}, but it is {mode!r}.")
        if mode == "projections" and not projections:
            raise ValueError("mode='projections' needs their number: set `projections`, to 256 for one.")
        self._mode = max(self._mode, mode, key=MODES.index)
        self._documents = self._documents or documents
        if projections and (self._probes is None or (self._probes.number, self._probes.seed) != (projections, seed)):
            if self._probes is not None:
                raise ValueError(
                    f"This model's gradients are recorded with {self._probes.number} projections of seed "
                    f"{self._probes.seed} already. Ask for the same ones."
                )
            self._probes = Probes(projections, seed)

    def again(self) -> None:
        """Begin a new record for another backward pass of the same forward."""
        self.tally = Tally(self._mode, self.batch.rows)
        self.sketch = Sketch(self._probes, self.batch.rows) if self._probes is not None else None
        self._seen, self._twice, self._stash, self._stopped = {}, None, {}, False
        self._received = set()

    def stop(self) -> None:
        """Record no further backward pass of this forward."""
        self._stopped, self.sketch = True, None

    def remove(self) -> None:
        """Take everything off again; what was recorded stays, and a backward that comes only now is recorded yet."""
        self._stack.close()
        self._installed = False

    def _begin(self, module: nn.Module, positional: tuple, keywords: dict[str, Any]) -> None:
        if not torch.is_grad_enabled():
            return
        segments = documents_of(keywords) if self._segments is None and self._documents else self._segments
        try:
            self.batch = Batch.of(positional, keywords, segments)
        except GradientRecordError as error:
            if not self.lenient:
                raise
            self.batch, self.refused = None, str(error)
            return
        self.again()

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
