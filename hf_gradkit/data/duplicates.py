"""Copies of rows: what a model sees often it remembers first, so dropping them is a defence (arXiv 2107.06499)."""

import numpy as np
from datasets import Dataset

from .._text import did_you_mean, listing
from .hold_out import row_hash


def drop_duplicates(dataset: Dataset, ignore: tuple[str, ...] = ()) -> Dataset:
    """Return the rows without those whose content an earlier row has. Exact copies only; near ones stay.

    Args:
        dataset: n rows.
        ignore: columns in which copies may differ, such as their ids.

    Raises:
        ValueError: for a stream, or a column that is not there.
    """
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"The data is a {type(dataset).__name__}, and copies are dropped from a `datasets.Dataset`. Load it "
            "without streaming."
        )
    for name in ignore:
        if name not in dataset.column_names:
            raise ValueError(
                f"`ignore` has {name!r}, but the data has no such column.{did_you_mean(name, dataset.column_names)} "
                f"Its columns: {listing(dataset.column_names)}."
            )
    columns = sorted(set(dataset.column_names) - set(ignore))
    first: dict[str, int] = {}
    for number, row in enumerate(dataset.with_format(None)):
        first.setdefault(row_hash(row, columns), number)
    return dataset.select(np.fromiter(first.values(), dtype=np.int64))
