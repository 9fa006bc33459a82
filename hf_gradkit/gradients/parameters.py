"""Which parameters are recorded, and in which layers: of a model that may be wrapped, and sharded over processes."""

from typing import TYPE_CHECKING, Any

from torch import nn

from .._text import listing
from .errors import GradientRecordError
from .patches import forward_for
from .site import Site

if TYPE_CHECKING:
    from .recorder import Recorder


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside what DDP and DeepSpeed put around it; FSDP2 puts nothing around."""
    while isinstance(model, nn.parallel.DistributedDataParallel) or type(model).__name__ == "DeepSpeedEngine":
        model = model.module
    return model


def inside_compiled(model: Any) -> Any:
    """Return what torch.compile was put around: under DDP, DDP itself."""
    return getattr(model, "_orig_mod", model)


def wanted(model: nn.Module, parameters: Any) -> dict[str, nn.Parameter]:
    """Return the parameters asked for, each once, by name.

    Args:
        model: is not wrapped.
        parameters: as for `record_gradients`.

    Raises:
        GradientRecordError: if none requires a gradient.
        ValueError: for names that are not trainable parameters.
    """
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


def find_sites(recorder: "Recorder", model: nn.Module, parameters: dict[str, nn.Parameter]) -> list[Site]:
    """Return the layers of which some of these parameters can be recorded.

    Raises:
        GradientRecordError: if there is none.
    """
    names = {id(p): name for name, p in parameters.items()}
    head = output_embeddings(model)
    users: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None and id(parameter) in names:
                users.setdefault(id(parameter), []).append(module)
    sites = []
    for module in model.modules():
        own = {n: names[id(p)] for n, p in module._parameters.items() if p is not None and id(p) in names}
        if not own or forward_for(module) is None:
            continue
        sharing = {id(m): m for n in own for m in users[id(module._parameters[n])]}
        tied = len(sharing) > 1
        if not tied or _is_tied_head(list(sharing.values()), head):
            sites.append(Site(recorder, module, own, tied))
    if not sites:
        raise GradientRecordError(
            f"None of the {len(parameters)} parameters asked for can be recorded: {listing(list(parameters)[:5])}"
            f"{', ...' if len(parameters) > 5 else ''}."
        )
    return sites


def output_embeddings(model: nn.Module) -> nn.Module | None:
    """Return the output head of a transformers model, or None."""
    try:
        head = model.get_output_embeddings()
    except (AttributeError, NotImplementedError):  # no transformers model, or one without a head
        return None
    if head is None:
        return None
    # PEFT keeps a head that is trained in full (`modules_to_save`) as a copy inside a wrapper, which shows its weight.
    weight = getattr(head, "weight", None)
    return next((module for module in head.modules() if module._parameters.get("weight") is weight), head)


def _is_tied_head(modules: list[nn.Module], head: nn.Module | None) -> bool:
    """Whether a weight is shared by exactly an embedding and the output head."""
    embeddings = [module for module in modules if isinstance(module, nn.Embedding)]
    return len(modules) == 2 and len(embeddings) == 1 and head in modules
