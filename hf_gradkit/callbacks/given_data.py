"""What the ranks are given to train on: how many rows and steps, and whether all were given the same data."""

from dataclasses import dataclass
from hashlib import blake2b
from math import gcd
from typing import Any

from accelerate.data_loader import BatchSamplerShard, DataLoaderDispatcher, DataLoaderShard, IterableDatasetShard
from datasets import Dataset, IterableDataset
from torch.utils.data import SequentialSampler

from .. import _compat

ROWS = 64  # whose contents are compared


@dataclass(frozen=True)
class GivenData:
    """What a rank says of its data.

    Attributes:
        rows: how many; None where the loader does not split rows by their numbers: streams, batches that the first
            process hands out, loaders that accelerate did not prepare.
        hashes: of the contents of some, at the same places on all ranks with as many rows; none where reading a row
            may change something or say something else each time.
        parts: that a stream was split into for the ranks before the loader got it.
    """

    rows: int | None = None
    hashes: tuple[int, ...] = ()
    parts: int = 1


def given_data(dataloader: Any) -> GivenData:
    """Return what this rank says of its data. No row of a stream is read."""
    if not isinstance(dataloader, (DataLoaderShard, DataLoaderDispatcher)):
        return GivenData()  # nobody splits what the rank was given
    dataset = dataloader.dataset
    if isinstance(dataset, IterableDatasetShard):
        dataset = dataset.dataset
    if isinstance(dataset, IterableDataset):
        return GivenData(parts=_compat.parts_of_stream(dataset))
    if isinstance(dataloader, DataLoaderDispatcher) or not isinstance(dataloader.batch_sampler, BatchSamplerShard):
        return GivenData()
    try:
        rows = len(dataset)
    except TypeError:
        return GivenData()
    return GivenData(rows, _hashes(dataset, rows) if isinstance(dataset, Dataset) else ())


def split_twice(everybody: list[GivenData]) -> str | None:
    """Say that the ranks' data differ, and that the loader splits them all the same; None where they seem equal.

    Of rows that each rank worked on by itself, with seeds of its own say, some differ; of parts nearly all do.
    """
    first, rows = everybody[0], [each.rows for each in everybody]
    if any(each.parts > 1 for each in everybody):
        found = "the stream was split by `split_dataset_by_node`"
    elif None not in rows and len(set(rows)) > 1:
        found = f"the ranks were given different numbers of rows, {', '.join(map(str, rows))}"
    elif any(_mostly_other(first.hashes, each.hashes) for each in everybody[1:]):
        found = f"the ranks were given as many rows each, {first.rows}, but others"
    else:
        return None
    return (
        f"The data seem to be split by rank already, and the data loader splits them again: {found}. So "
        f"{len(everybody) - 1} of {len(everybody)} rows are never seen. Give all ranks the same data: before the "
        "trainer leave out `shard`, `split_dataset_by_node` and whatever else depends on the rank."
    )


def _hashes(dataset: Dataset, rows: int) -> tuple[int, ...]:
    """Return hashes of rows that lie evenly over the data, as they are stored: no transform of the user's runs.

    Images and sounds are left out: where they are files, the path is this machine's.
    """
    columns = [name for name, feature in dataset.features.items() if not _compat.is_decoded(feature)]
    number = min(ROWS, rows)
    if not columns or not number:
        return ()
    places = [i * rows // number for i in range(number)]
    contents = dataset.with_format("arrow", columns=columns)[places].to_pylist()
    return tuple(int.from_bytes(blake2b(repr(row).encode(), digest_size=8).digest(), "big") for row in contents)


def _mostly_other(ours: tuple[int, ...], theirs: tuple[int, ...]) -> bool:
    if len(ours) != len(theirs):  # columns of other kinds, of which some are not read
        return False
    return sum(a != b for a, b in zip(ours, theirs, strict=True)) > len(ours) / 2


def number_of_rows(dataloader: Any) -> int | None:
    """Return how many rows an epoch should see; None for streams and loaders that do not say."""
    try:
        rows = len(dataloader.dataset)
    except (AttributeError, TypeError):
        return None
    try:
        return min(rows, len(_sampler(dataloader)))  # a sampler may draw fewer on purpose
    except TypeError:
        return rows


def steps_of_epoch(dataloader: Any, accumulation_steps: int, monitor_steps: int) -> int | None:
    """Return how many optimizer steps an epoch has; None for streams and loaders that do not say.

    Of rows that are not shuffled, only those steps that are ever monitored: the same ones may be in each epoch.
    """
    try:
        steps = max(1, len(dataloader) // accumulation_steps)
    except TypeError:
        return None
    return steps // gcd(steps, monitor_steps) if isinstance(_sampler(dataloader), SequentialSampler) else steps


def _sampler(dataloader: Any) -> Any:
    """Return the sampler of a loader that accelerate shards."""
    inner = getattr(getattr(dataloader, "batch_sampler", None), "batch_sampler", None)
    return getattr(inner, "sampler", None)
