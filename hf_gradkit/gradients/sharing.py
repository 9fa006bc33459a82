"""One recorder for all that watch a model's training: what is recorded is what any of them needs."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from .parameters import unwrap
from .recorder import Recorder

_SHARED = "_hf_gradkit_shared_recorder"


class _Shared:
    """A recorder, and how many use it."""

    def __init__(self, recorder: Recorder):
        self.recorder, self.users = recorder, 0


@contextmanager
def shared_recorder(
    model: nn.Module, mode: str, projections: int = 0, seed: int = 0, documents: bool = False, lenient: bool = False
) -> Iterator[Recorder]:
    """Record a model's gradients together with others that do: as `record_gradients`, of all trainable parameters.

    The recorder keeps what the most demanding asks for, and goes when the last has left. It must be asked for before
    the forward that is to be recorded.

    Args:
        model: as for `record_gradients`.
        mode: the least to keep; see `record_gradients`.
        projections: number of probes; all that ask for some must ask for the same.
        seed: of the probes.
        documents: the documents of a flattened batch are its rows.
        lenient: a batch whose rows are unknown is not recorded, and `refused` of the recorder says why, where all that
            share it put up with that.
    """
    inner = unwrap(model)
    shared = getattr(inner, _SHARED, None)
    if shared is None:
        shared = _Shared(Recorder(inner, mode=mode, projections=projections, seed=seed))
        shared.recorder.lenient = lenient
        shared.recorder.install()
        object.__setattr__(inner, _SHARED, shared)
    shared.recorder.require(mode, projections, seed, documents)
    shared.recorder.lenient &= lenient
    shared.users += 1
    shared.recorder.is_shared = shared.users > 1
    try:
        yield shared.recorder
    finally:
        shared.users -= 1
        shared.recorder.is_shared = shared.users > 1
        if shared.users == 0:
            object.__delattr__(inner, _SHARED)
            shared.recorder.remove()
