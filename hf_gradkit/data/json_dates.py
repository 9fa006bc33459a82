"""Dates of JSON files as they were written: what reads the files makes timestamps of them, and forgets their form."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from .loading import builder_of


def written_dates(source: str, dataset: Dataset, rows: np.ndarray) -> dict[int, dict[str, Any]]:
    """Return the values of the columns that hold dates as a JSON file has them, for some rows, by their numbers.

    Nothing for data that is not one whole JSON file, or has no dates.

    Args:
        source: what the data was loaded from.
        dataset: the data.
        rows: numbers of rows. (K,)
    """
    columns = [field.name for field in dataset.features.arrow_schema if _holds_dates(field.type)]
    path = Path(source).expanduser()
    if not columns or not path.is_file() or builder_of(path) != "json":
        return {}
    wanted, found, number = set(rows.tolist()), {}, -1
    try:
        for number, row in enumerate(_rows(path)):
            if number in wanted:
                found[number] = {name: row.get(name) for name in columns}
    except (ValueError, AttributeError):  # JSON of another layout, which `datasets` reads nevertheless
        return {}
    return found if number + 1 == len(dataset) else {}  # else a part of the file


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with (gzip.open if path.suffix.lower() == ".gz" else open)(path, "rt", encoding="utf-8-sig") as file:
        start = file.read(1)
        while start.isspace():
            start = file.read(1)
        file.seek(0)
        yield from json.load(file) if start == "[" else (json.loads(line) for line in file if line.strip())


def _holds_dates(kind: pa.DataType) -> bool:
    if pa.types.is_temporal(kind):
        return True
    return any(_holds_dates(kind.field(i).type) for i in range(kind.num_fields))
