"""Packing that keeps the accompanying columns: a packed row holds a list of them, one entry a document."""

from typing import Any

from datasets import Dataset, IterableDataset
from trl import pack_dataset

from .columns import ITEM, ExampleColumns


def pack_with_columns(
    dataset: Dataset | IterableDataset,
    columns: ExampleColumns,
    seq_length: int,
    strategy: str,
    shuffle_seed: int | None = None,
    num_proc: int | None = None,
) -> Dataset | IterableDataset:
    """Pack tokenised rows as TRL does, and keep the columns that accompany each example.

    TRL's packing keeps what has one entry a token, so the columns are spread over the tokens before and gathered to
    one entry a document after. A document that `"bfd_split"` cuts in pieces gives every piece its columns.

    Args:
        dataset: rows with `input_ids`, `labels` and the columns.
        columns: which columns to keep.
        seq_length: length of a packed row, in tokens.
        strategy: `"bfd"` or `"bfd_split"`.
        shuffle_seed: shuffles with this seed before and after packing, as TRL does; None does not shuffle.
        num_proc: number of processes, for a `Dataset`.
    """
    kept = [name for name in columns.names if name != ITEM]
    kwargs: dict[str, Any] = {"num_proc": num_proc} if isinstance(dataset, Dataset) else {}

    def describe(text: str) -> dict[str, Any]:
        return {**kwargs, "desc": text} if isinstance(dataset, Dataset) else {}

    dataset = dataset.select_columns(["input_ids", "labels", *kept])
    dataset = dataset.map(_spread, fn_kwargs={"names": kept}, **describe("Spreading example columns"))
    if shuffle_seed is not None:
        dataset = dataset.shuffle(seed=shuffle_seed)
    dataset = pack_dataset(dataset, seq_length, strategy, describe("Packing"))
    dataset = dataset.map(_gather, fn_kwargs={"names": kept}, with_indices=True, **describe("Gathering columns"))
    return dataset if shuffle_seed is None else dataset.shuffle(seed=shuffle_seed)


def _spread(row: dict[str, Any], names: list[str]) -> dict[str, list]:
    return {name: [row[name]] * len(row["input_ids"]) for name in names}


def _gather(row: dict[str, Any], index: int, names: list[str]) -> dict[str, Any]:
    starts, start = [], 0
    for length in row["seq_lengths"]:
        starts.append(start)
        start += length
    return {ITEM: index, **{name: [row[name][start] for start in starts] for name in names}}
