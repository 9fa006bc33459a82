"""What the processes of one launch do together: one works, the others get its result, or its error."""

import os
from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

T = TypeVar("T")


def world() -> PartialState:
    """Return the state of the processes that were launched together, made if nothing has made it yet.

    Raises:
        ValueError: if several were started, but this one knows nothing of the others.
    """
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    # Without `cpu=True`, processes on a machine without an accelerator would know nothing of each other.
    state = PartialState(cpu=on_cpu or not torch.accelerator.is_available())
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1 and state.num_processes == 1:
        raise ValueError(
            f"{started} processes were started, but this one would score alone, and each of them everything. "
            "`accelerate.PartialState()` was made without cpu=True on a machine without an accelerator: pass it, or "
            "set use_cpu=True in the trainer's arguments."
        )
    return state


def on_main(function: Callable[[], T]) -> T:
    """Call a function on the main process, and return what it returned, or raise what it raised, on all of them."""
    if world().num_processes == 1:
        return function()
    answer: list = [None, None]
    if world().is_main_process:
        try:
            answer[0] = function()
        except Exception as error:  # the others wait for an answer, whatever it is
            answer[1] = error
    broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]
