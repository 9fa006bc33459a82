"""Ids of examples: the data's own, or hashes of what is in them, which stay when rows move."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable

from datasets import Dataset

from .._text import did_you_mean, listing

EXAMPLE_ID = "example_id"  # column for ids that the data did not have


def example_ids(dataset: Dataset, content: Iterable[str], column: str | None = None) -> list[str] | list[int]:
    """Return an id for each example.

    Without a column, it is a hash of what the example holds (16 hexadecimal digits), with `-1`, `-2`, ... after it for
    copies of an earlier example: the same in whatever order the data comes.

    Args:
        dataset: the examples.
        content: columns that make an example what it is.
        column: of the data's own ids.

    Raises:
        ValueError: if there is no such column, or its ids do not tell the examples apart.
    """
    rows = dataset.with_format(None)
    if column is not None:
        return _own(rows, column)
    names = sorted(content)
    seen: Counter[str] = Counter()
    ids = []
    for row in rows.select_columns(names):
        text = json.dumps([[name, row[name]] for name in names], sort_keys=True, default=str)
        found = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        ids.append(f"{found}-{seen[found]}" if seen[found] else found)
        seen[found] += 1
    return ids


def _own(rows: Dataset, column: str) -> list:
    present = rows.column_names
    if column not in present:
        raise ValueError(
            f"`example_id_column` is {column!r}, but the data has no such column.{did_you_mean(column, present)} Its "
            f"columns: {listing(present)}."
        )
    ids = list(rows[column])
    first: dict = {}
    for number, found in enumerate(ids):
        if not isinstance(found, (str, int)):
            raise ValueError(
                f"Row {number} of the data has {found!r} in `example_id_column` {column!r}. Ids are strings or "
                "integers."
            )
        if first.setdefault(found, number) != number:
            raise ValueError(
                f"Rows {first[found]} and {number} of the data have the same id {found!r} in `example_id_column` "
                f"{column!r}. Ids must tell examples apart; leave the column out to have their content hashed."
            )
    return ids
