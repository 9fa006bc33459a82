"""Which layers can be recorded, and the forward that each runs while it is."""

import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .errors import GradientRecordError
from .functions import EmbeddingTap, ExpandFunction, LinearFunction

if TYPE_CHECKING:
    from .site import Site

Forward = Callable[..., Any]


def forward_for(module: nn.Module) -> Callable[["Site", Forward], Forward] | None:
    """Return what makes the recorded forward of a layer, or None for a layer that cannot be recorded."""
    if isinstance(module, (nn.Linear, Conv1D)):
        known = type(module).forward in (nn.Linear.forward, Conv1D.forward)
        return _linear if known else None
    if isinstance(module, nn.Embedding):
        return _embedding
    if isinstance(module, nn.LayerNorm) and type(module).forward is nn.LayerNorm.forward:
        return _layer_norm
    if isinstance(module, nn.RMSNorm) and type(module).forward is nn.RMSNorm.forward:
        return _rms_norm
    own = module._parameters
    if own and all(p is None or len(whole_shape(p)) == 1 for p in own.values()) and _is_elementwise(module):
        return _elementwise
    return None


def whole_shape(parameter: nn.Parameter) -> torch.Size:
    """Return the shape of a parameter, of which ZeRO-3 keeps nothing on a process but a share elsewhere."""
    return getattr(parameter, "ds_shape", parameter.shape)


def patch(module: nn.Module, forward: Forward) -> Callable[[], None]:
    """Put a forward on one layer, and return what takes it off again."""
    had_own = "forward" in vars(module)
    before = module.forward
    module.forward = types.MethodType(lambda self, *a, **k: forward(*a, **k), module)

    def undo() -> None:
        if had_own:
            module.forward = before
        else:
            del module.forward

    return undo


def _linear(site: "Site", original: Forward) -> Forward:
    module, transposed = site.module, isinstance(site.module, Conv1D)

    def forward(x: Tensor) -> Tensor:
        if not site.recorder.is_on():
            return original(x)
        return LinearFunction.apply(x, module.weight, module.bias, site, transposed)

    return forward


def _embedding(site: "Site", original: Forward) -> Forward:
    module = site.module

    def forward(ids: Tensor) -> Tensor:
        recorder = site.recorder
        if not recorder.is_on():
            return original(ids)
        if ids.dim() == 1:
            ids = ids[None]
        if ids.shape[0] != recorder.batch.size:  # positions, once for all rows: each row has a gradient of its own
            ids = ids.expand(recorder.batch.size, -1)
        if site.tied:
            recorder.unique = torch.unique(ids)
        out = original(ids)
        return EmbeddingTap.apply(out, ids, site, _scale(module, ids, out))

    return forward


def _scale(module: nn.Embedding, ids: Tensor, out: Tensor) -> float:
    """Return what an embedding multiplies its rows by, from one of them (Gemma's do)."""
    if type(module).forward is nn.Embedding.forward:
        return 1.0
    with torch.no_grad():
        plain = F.embedding(ids[:1, :1], module.weight).double().flatten()
        scaled = out[:1, :1].detach().double().flatten()
        factor = float((plain @ scaled) / (plain @ plain))
        if not torch.allclose(scaled, factor * plain, rtol=1e-2, atol=1e-6):
            raise GradientRecordError(
                f"{type(module).__name__} does more than scale its embeddings, so its gradients are unknown. Leave it "
                "out with `parameters`."
            )
    exact = getattr(module, "embed_scale", None)
    if exact is None:
        return factor
    return float(exact)


def _own_weights(site: "Site", dimensions: int) -> dict[str, Tensor]:
    """Return the layer's recorded parameters, one copy a row."""
    batch, module = site.recorder.batch, site.module
    return {name: ExpandFunction.apply(module._parameters[name], batch, dimensions, site, name) for name in site.names}


def _layer_norm(site: "Site", original: Forward) -> Forward:
    module = site.module

    def forward(x: Tensor) -> Tensor:
        if not site.recorder.is_on():
            return original(x)
        own = {**module._parameters, **_own_weights(site, x.dim())}
        out = F.layer_norm(x, module.normalized_shape, None, None, module.eps)
        if own["weight"] is not None:
            out = out * own["weight"].to(out.dtype)
        return out if own.get("bias") is None else out + own["bias"].to(out.dtype)

    return forward


def _rms_norm(site: "Site", original: Forward) -> Forward:
    module = site.module

    def forward(x: Tensor) -> Tensor:
        if not site.recorder.is_on():
            return original(x)
        own = _own_weights(site, x.dim())
        return F.rms_norm(x, module.normalized_shape, None, module.eps) * own["weight"].to(x.dtype)

    return forward


def _elementwise(site: "Site", original: Forward) -> Forward:
    module = site.module

    def forward(x: Tensor, *positional: Any, **keywords: Any) -> Any:
        if not site.recorder.is_on():
            return original(x, *positional, **keywords)
        return _with_weights(module, _own_weights(site, x.dim()), original, x, *positional, **keywords)

    return forward


def _with_weights(module: nn.Module, weights: dict[str, Tensor], forward: Forward, *a: Any, **k: Any) -> Any:
    """Run a layer's forward on other weights than its own."""
    kept = {name: module._parameters.pop(name) for name in weights}
    try:
        for name, value in weights.items():
            object.__setattr__(module, name, value)
        return forward(*a, **k)
    finally:
        for name, value in kept.items():
            object.__delattr__(module, name)
            module._parameters[name] = value


def _is_elementwise(module: nn.Module) -> bool:
    """Whether a layer's weights only multiply or shift the last dimension: tried out on numbers."""
    sizes = {whole_shape(p)[0] for p in module._parameters.values() if p is not None}
    if len(sizes) != 1 or len(list(module.children())):
        return False
    generator = torch.Generator().manual_seed(0)
    (size,) = sizes
    device = next(p for p in module._parameters.values() if p is not None).device
    if device.type == "meta":
        return False
    x = torch.randn(2, 3, size, generator=generator).to(device)
    names = [name for name, p in module._parameters.items() if p is not None]
    weights = {name: torch.randn(2, size, generator=generator).to(device) for name in names}
    try:
        with torch.no_grad():
            together = _with_weights(module, {n: w[:, None] for n, w in weights.items()}, module.forward, x)
            alone = [
                _with_weights(module, {n: w[i] for n, w in weights.items()}, module.forward, x[i : i + 1])
                for i in range(2)
            ]
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False
    if not isinstance(together, Tensor) or together.shape != x.shape:
        return False
    return torch.allclose(together.float(), torch.cat(alone).float(), rtol=1e-5, atol=1e-6)
