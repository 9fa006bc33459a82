"""Where what is ours is tested: one process and DDP. Everything else raises until it is."""

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

TESTED_BACKENDS = {DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU}


def backend() -> DistributedType:
    """Return what these processes train under; FSDP and DeepSpeed are known once there is an accelerator."""
    # Read, not constructed: a second `AcceleratorState()` copies what the processes' own state says over it.
    found = AcceleratorState._shared_state.get("distributed_type")
    return PartialState().distributed_type if found is None else found


def check_backend(found: DistributedType, what: str, instead: str) -> None:
    """Raise `ValueError` for a backend under which something is not tested.

    Args:
        found: the backend.
        what: what does not run there, as the start of a sentence in the plural.
        instead: what to leave out, besides choosing another backend.
    """
    if found not in TESTED_BACKENDS:
        raise ValueError(
            f"{what} are not tested under {found.value} yet, so they refuse to run there. Use one process or DDP "
            f"(--accelerate_config multi_gpu), or {instead}."
        )
