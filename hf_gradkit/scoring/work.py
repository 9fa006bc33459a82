"""The folder in which a data set is scored: streams of finished batches while it goes on, one file when it is done.

    key.json                            what is scored, by what
    streams/rank-00000-run-000.arrow    batches that a process finished; one file a process and run
    scores.arrow                        all rows, in order; the streams are gone by then

A stream is only ever appended to by the process that made it. One that was killed leaves a torn last batch at most,
which is not read; the next run begins a file of its own.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

ROW = "row"
KEY, STREAMS, SCORES = "key.json", "streams", "scores.arrow"


class ScoreStream:
    """Appends batches of scored rows to a file; what was appended outlives the process.

    Args:
        folder: where the file goes.
        rank: of this process.
    """

    def __init__(self, folder: Path, rank: int):
        self._folder, self._rank = folder, rank
        self._file: Any = None
        self._writer: Any = None

    def append(self, rows: np.ndarray, columns: dict[str, np.ndarray]) -> None:
        """Write row numbers (n,) and their figures, see `as_arrow`, and hand them to the operating system."""
        batch = pa.record_batch({ROW: pa.array(rows), **{name: as_arrow(value) for name, value in columns.items()}})
        if self._writer is None:
            self._file = self._create()
            self._writer = pa.ipc.new_stream(self._file, batch.schema)
        self._writer.write_batch(batch)
        self._file.flush()

    def _create(self) -> Any:
        self._folder.mkdir(parents=True, exist_ok=True)
        run = 0
        while True:
            with contextlib.suppress(FileExistsError):
                return (self._folder / f"rank-{self._rank:05d}-run-{run:03d}.arrow").open("xb")
            run += 1

    def __enter__(self) -> "ScoreStream":
        return self

    def __exit__(self, *_) -> None:
        if self._writer is not None:
            self._writer.close()
            self._file.close()


class WorkFolder:
    """What one scoring, of one data set by one model, has on disk. Only the main process opens and finishes it.

    Args:
        folder: made when missing; holds one scoring.
        key: tells this scoring from any other one.
        columns: names of the figures.
        rows: number of rows.
    """

    def __init__(self, folder: str | os.PathLike, key: str, columns: tuple[str, ...], rows: int):
        self.folder = Path(folder)
        self._identity = {"format": 1, "key": key, "rows": rows, "columns": list(columns)}
        self._columns, self._rows = columns, rows

    def is_done(self) -> bool:
        """Return whether this scoring, and no other one, is here as a whole."""
        return self._found() == self._identity and (self.folder / SCORES).exists()

    def _found(self) -> Any:
        return read_json(self.folder / KEY)

    def open(self, replace: bool = False) -> np.ndarray:
        """Claim the folder and return which rows are scored already. (rows,) bool

        Raises:
            ValueError: if it holds another scoring, and `replace` is False.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._found() not in (None, self._identity):
            if not replace:
                raise ValueError(
                    f"{str(self.folder)!r} holds the scores of another model, other data or other settings, and they "
                    "must not be mixed. Choose another folder, or say that they may be replaced."
                )
            self._clear()
        if self._found() is None:
            write_json(self.folder / KEY, self._identity)
        if (self.folder / SCORES).exists():
            return np.ones(self._rows, dtype=bool)
        done = np.zeros(self._rows, dtype=bool)
        for batch in self._batches():
            done[batch.column(ROW).to_numpy()] = True
        return done

    def stream(self, rank: int) -> ScoreStream:
        """Return where a process puts its batches."""
        return ScoreStream(self.folder / STREAMS, rank)

    def finish(self) -> None:
        """Merge the streams into one file.

        A row that two jobs scored at once, in the same folder, counts once.

        Raises:
            ValueError: if rows are missing.
        """
        if (self.folder / SCORES).exists():  # an earlier run, or another job in the meantime
            return
        done = np.zeros(self._rows, dtype=bool)
        merged: dict[str, np.ndarray] = {}
        for batch in self._batches():
            rows = batch.column(ROW).to_numpy()
            done[rows] = True
            for name in self._columns:
                values = as_numpy(batch.column(name))
                if name not in merged:
                    merged[name] = np.empty((self._rows, *values.shape[1:]), dtype=values.dtype)
                merged[name][rows] = values
        if not done.all():
            missing = np.flatnonzero(~done)
            raise ValueError(
                f"{len(missing)} of {self._rows} rows have no score in {str(self.folder)!r} (the first one is "
                f"{missing[0]}), though every process has finished its part. Several machines must see the same "
                "folder: put it on a file system that they share."
            )
        table = pa.table({name: as_arrow(value) for name, value in merged.items()})
        temporary = self.folder / f"{SCORES}.{os.getpid()}.tmp"
        with temporary.open("wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        os.replace(temporary, self.folder / SCORES)
        shutil.rmtree(self.folder / STREAMS, ignore_errors=True)

    def read(self) -> dict[str, np.ndarray]:
        """Return the figures of all rows, in order: (rows,) or (rows, d) each, or (rows,) of arrays

        Raises:
            ValueError: if this process does not see the file that the main process wrote.
        """
        path = self.folder / SCORES
        if not path.exists():
            raise ValueError(
                f"The main process wrote {str(path)!r}, but this one does not see it. Several machines must see the "
                "same folder: put it on a file system that they share."
            )
        with pa.ipc.open_file(path) as file:
            table = file.read_all()
        return {name: as_numpy(table.column(name).combine_chunks()) for name in self._columns}

    def _batches(self) -> Iterator[pa.RecordBatch]:
        for path in sorted((self.folder / STREAMS).glob("*.arrow")):
            yield from read_stream(path)

    def _clear(self) -> None:
        shutil.rmtree(self.folder / STREAMS, ignore_errors=True)
        for name in (SCORES, KEY):
            (self.folder / name).unlink(missing_ok=True)


def read_stream(path: Path) -> Iterator[pa.RecordBatch]:
    """Yield the whole batches of a stream, and leave out what a killed process wrote of another one."""
    with path.open("rb") as file, contextlib.suppress(pa.ArrowInvalid, OSError):
        reader = pa.ipc.open_stream(file)
        yield from reader


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file such that it is never seen half written."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)


def read_json(path: Path) -> Any:
    """Return what a JSON file holds, or None if there is none."""
    return json.loads(path.read_text()) if path.exists() else None


def as_arrow(values: np.ndarray) -> pa.Array:
    """Return figures as one column: (n,) numbers, (n, d) numbers, or (n,) of arrays of any length, dtype object."""
    if values.dtype == object:
        ends = np.cumsum([0, *map(len, values)], dtype=np.int64)
        return pa.LargeListArray.from_arrays(pa.array(ends), pa.array(np.concatenate(values)))
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def as_numpy(column: pa.Array) -> np.ndarray:
    """Return a column as figures: the way back of `as_arrow`."""
    if pa.types.is_large_list(column.type):
        ends = np.cumsum(column.value_lengths().to_numpy(zero_copy_only=False))
        return as_ragged(np.split(column.flatten().to_numpy(zero_copy_only=False), ends[:-1]))
    if not pa.types.is_fixed_size_list(column.type):
        return column.to_numpy(zero_copy_only=False)
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)


def as_ragged(arrays: list[np.ndarray]) -> np.ndarray:
    """Return arrays of any length as one array of them. (n,) of dtype object"""
    ragged = np.empty(len(arrays), dtype=object)
    for number, values in enumerate(arrays):  # assigned at once, arrays of one length would become a matrix
        ragged[number] = values
    return ragged
