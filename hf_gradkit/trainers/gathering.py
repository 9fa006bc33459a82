"""Brings the examples of all ranks together."""

import torch
from accelerate import Accelerator
from torch import Tensor


def gather_rows(accelerator: Accelerator, local: Tensor) -> tuple[Tensor, slice]:
    """Return the rows of all ranks, in the order of the global ranks, on the CPU, and the slice of this rank's.

    Ranks can hold different numbers of rows (packed rows, last batches).

    Args:
        accelerator: the trainer's.
        local: this rank's rows, on its device where there are several ranks. (n, k)

    Returns:
        All rows (N, k), and where this rank's n are among them.
    """
    n = len(local)
    if accelerator.num_processes == 1:
        return local.cpu(), slice(0, n)
    marked = torch.cat([local.new_ones(n, 1), local], dim=1)
    padded = accelerator.pad_across_processes(marked, dim=0, pad_index=0)
    everything = accelerator.gather(padded).cpu()
    real = everything[:, 0] == 1
    first = int(real[: accelerator.process_index * len(padded)].sum())
    return everything[real, 1:], slice(first, first + n)
