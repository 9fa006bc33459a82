"""Where what is ours is tested, and what two CPU processes need to be the backend that they were started as."""

import atexit
import functools
import importlib.util
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

# Every process holds the whole model.
REPLICATED = frozenset({DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU})
# Besides: parameters, gradients or optimizer state are split over the processes.
SHARDED = REPLICATED | {DistributedType.FSDP, DistributedType.DEEPSPEED}
# In what gloo and NCCL say of a collective whose other end is gone.
PEER_GONE = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "timed out waiting")


def backend() -> DistributedType:
    """Return what these processes train under; FSDP and DeepSpeed are known once there is an accelerator."""
    # Read, not constructed: a second `AcceleratorState()` copies what the processes' own state says over it.
    found = AcceleratorState._shared_state.get("distributed_type")
    return PartialState().distributed_type if found is None else found


def check_backend(
    found: DistributedType, what: str, instead: str, tested: frozenset[DistributedType] = REPLICATED
) -> None:
    """Raise `ValueError` for a backend under which something is not tested.

    Args:
        found: the backend.
        what: what does not run there, as the start of a sentence in the plural.
        instead: what to leave out, besides choosing another backend.
        tested: the backends under which it is tested.
    """
    if found not in tested:
        raise ValueError(
            f"{what} are not tested under {found.value} yet, so they refuse to run there. Use one process or DDP "
            f"(--accelerate_config multi_gpu), or {instead}."
        )


def check_sharding(accelerator: object) -> None:
    """Raise `ValueError` where FSDP was asked for and accelerate made something else of it, or its first version.

    Args:
        accelerator: the trainer's.
    """
    if accelerator.distributed_type == DistributedType.MULTI_CPU and launched_as("FSDP"):
        raise ValueError(
            "FSDP was asked for, but accelerate shards models on accelerators only: these CPU processes would each "
            "train the whole model, as DDP. Try FSDP2 on a CPU through gradkit (gradkit sft ... --accelerate_config "
            "cpu/fsdp2), or start your script with cpu/multi_gpu."
        )
    if accelerator.distributed_type == DistributedType.FSDP:
        check_fsdp_version(2 if accelerator.is_fsdp2 else 1)


def check_fsdp_version(version: int) -> None:
    """Raise `ValueError` for the first version of FSDP."""
    if version != 2:
        raise ValueError(
            "The launch configuration asks for the first version of FSDP, which hf-gradkit does not support and "
            "PyTorch is about to remove. Set `fsdp_version: 2`, or use --accelerate_config fsdp2."
        )


def check_parallelism(config: object, what: str, instead: str) -> None:
    """Raise `ValueError` for a parallelism configuration, with which nothing is tested.

    Args:
        config: accelerate's; None where there is none.
        what: what does not run with one, as the start of a sentence in the plural.
        instead: what to leave out, besides the configuration.
    """
    if config is not None:
        raise ValueError(
            f"{what} are not tested with a parallelism configuration: tensor, context and sequence parallelism split "
            f"examples over ranks, which they do not follow. Leave out `parallelism_config`, or {instead}."
        )


def check_state(what: str, instead: str) -> None:
    """Raise `ValueError` where the processes train in a way that `check_backend` does not see and nobody tested.

    For callbacks, which are not handed an accelerator. Arguments as for `check_parallelism`.
    """
    state = AcceleratorState._shared_state  # read as in `backend`
    if backend() == DistributedType.FSDP:
        check_fsdp_version(state["fsdp_plugin"].fsdp_version)
    check_parallelism(state.get("parallelism_config"), what, instead)


def prepare_cpu_backends() -> None:
    """Let CPU processes that were launched as FSDP2 or DeepSpeed be that; on accelerators nothing changes.

    Call it before an accelerator is made. accelerate enables FSDP for accelerators only, and on a CPU runs DDP without
    a word; DeepSpeed would first compile a communication library, without which gloo does the work.
    """
    outlive_gloo()
    if launched_as("FSDP"):
        _shard_on_cpu()
    if launched_as("DEEPSPEED") and importlib.util.find_spec("deepspeed") is not None:
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def outlive_gloo() -> None:
    """Let this process, if it is one of several, end a quarter of a second after its last line.

    gloo's threads may still be dropping the tensors of the last collective then, for which they need Python's lock.
    One that asks for it while the interpreter goes down aborts the process, after all its work (seen with torch 2.13).
    To destroy the process group waits for the threads only where nothing else holds it, and the device mesh of a
    model that FSDP2 shards does.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        atexit.unregister(_wait)
        atexit.register(_wait)


def _wait() -> None:
    time.sleep(0.25)


@contextmanager
def whole_state_dict(accelerator: Any) -> Iterator[None]:
    """Let FSDP2 gather a model that is saved, where the configuration has it write parts (`SHARDED_STATE_DICT`).

    Args:
        accelerator: the trainer's.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if accelerator.distributed_type != DistributedType.FSDP or "FULL" in str(plugin.state_dict_type):
        yield
        return
    before = plugin.state_dict_type
    plugin.set_state_dict_type("FULL_STATE_DICT")
    try:
        yield
    finally:
        plugin.set_state_dict_type(before)


def lost_another_process(error: BaseException | None) -> bool:
    """Return whether an error is, or comes from, a collective whose other end is gone."""
    while error is not None:
        words = str(error).lower()
        if isinstance(error, RuntimeError) and any(sign in words for sign in PEER_GONE):
            return True
        error = error.__cause__
    return False


def launched_as(what: str) -> bool:
    """Return whether accelerate's launcher was told to use "FSDP" or "DEEPSPEED"."""
    return os.environ.get(f"ACCELERATE_USE_{what}", "").lower() in ("1", "true", "yes")


def _shard_on_cpu() -> None:
    original = AcceleratorState.__init__
    if hasattr(original, "__wrapped__"):  # done already
        return

    @functools.wraps(original)
    def init(self, *positional, fsdp_plugin=None, **keywords):
        original(self, *positional, fsdp_plugin=fsdp_plugin, **keywords)
        if fsdp_plugin is None or self.distributed_type != DistributedType.MULTI_CPU:
            return
        # What accelerate's own constructor does for an accelerator.
        self.distributed_type = DistributedType.FSDP
        if self._mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self._mixed_precision)
        self.fsdp_plugin = fsdp_plugin
        self.device = torch.device("cpu")  # a device mesh has no "cpu:0"
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = init
