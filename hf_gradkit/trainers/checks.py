"""What the trainers refuse before anything trains: data without rows or labels, and worlds that are not tested."""

import os
from typing import Any

from datasets import Dataset, IterableDataset

from .._backends import SHARDED, check_backend, check_parallelism

ALL_MASKED = (
    "Every example of the training data is masked: no token has a label other than -100. Check the completions, the "
    "chat template's assistant markers (`assistant_only_loss`) and `max_length`."
)


def check_world(accelerator: Any, n_gpu: int) -> None:
    """Raise `ValueError` for a backend or a parallelism under which example weighting is not tested."""
    what, instead = "Example weighting and columns", "set weighting='none' and leave out the example columns"
    check_backend(accelerator.distributed_type, what, instead, tested=SHARDED)
    check_parallelism(getattr(accelerator, "parallelism_config", None), what, instead)
    if n_gpu > 1:
        raise ValueError(
            f"{n_gpu} GPUs are visible to one process, which `nn.DataParallel` would split the batch over. Start one "
            "process a GPU: gradkit ... --accelerate_config multi_gpu, or accelerate launch."
        )


def check_processes(args: Any) -> None:
    """Refuse to train one replica a process where several processes were started to train together."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if args is not None and world > 1 and args.world_size == 1:
        raise ValueError(
            f"{world} processes were started, but this one would train alone, and each of them its own model. On a "
            "machine without an accelerator set `use_cpu=True` (--use_cpu true), so that they train together."
        )


def check_not_empty(dataset: Any) -> None:
    """Raise `ValueError` for a training set without a row."""
    if isinstance(dataset, IterableDataset):
        empty = next(iter(dataset), None) is None
    else:
        empty = hasattr(dataset, "__len__") and len(dataset) == 0
    if empty:
        raise ValueError("The training data has no rows. Check the file, the split and any filter before it.")


def check_labels(dataset: Any) -> None:
    """Raise `ValueError` for a prepared training set in which no example has a label token."""
    if isinstance(dataset, IterableDataset):
        none_left = next(iter(dataset), None) is None
    else:
        none_left = isinstance(dataset, Dataset) and len(dataset) == 0
    if none_left:
        raise ValueError(
            "No example of the training data has a token to train on: preparation dropped them all. Check that "
            "`max_length` leaves room for the completion after the prompt."
        )
    if not isinstance(dataset, Dataset) or "labels" not in dataset.column_names:
        return  # the labels of a stream are looked at as they come
    for labels in dataset.with_format(None).select_columns("labels"):
        labels = labels["labels"]
        if not isinstance(labels, list) or any(label != -100 for label in labels[1:]):
            return
    raise ValueError(ALL_MASKED)


def check_trained(tokens: float | None, steps: int) -> None:
    """Raise `ValueError` for a run that came to its end without a token to train on; None: no batch in this call."""
    if tokens == 0 or (tokens is None and steps == 0):
        raise ValueError(ALL_MASKED)
