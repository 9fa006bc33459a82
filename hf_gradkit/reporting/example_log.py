"""One row per example and epoch, to parquet: what each example's loss and weight were, and when."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

FOLDER = "example_log"
ROWS_PER_PART = 100_000


class ExampleLog:
    """Writes `<output_dir>/example_log/part-<number>-rank-<rank>.parquet`.

    Each rank writes the examples it trained on, so strings need no communication. A part is written to a temporary
    name and renamed; parts end at checkpoints, so that a resumed run drops what came after its checkpoint and writes
    it again: no row is lost or repeated.

    Columns: `example_id`, `epoch`, `step` (optimizer steps finished before), `loss` (mean token cross-entropy, nats),
    `tokens` (label tokens), `weight` (multiplier that the loss got, column weight included), and `group` if there is
    a group column.

    Args:
        output_dir: the trainer's output folder.
        rank: global rank of this process.
        ranks: number of processes; an earlier run may have had more, whose parts are then the first one's.
    """

    def __init__(self, output_dir: str, rank: int, ranks: int = 1):
        self.folder = Path(output_dir) / FOLDER
        self.rank, self.ranks = rank, ranks
        self.part = 0
        self._columns: dict[str, list] = {}

    def start(self, part: int | None) -> None:
        """Begin a run: a fresh one (None) sets an older log aside, a resumed one drops parts from `part` on."""
        self._columns = {}
        self.part = part or 0
        mine = [path for path in sorted(self.folder.glob("part-*-rank-*.parquet")) if self._is_mine(path)]
        if part is None and mine:
            aside = _free_name(self.folder, self.rank)
            aside.mkdir(parents=True, exist_ok=True)
            for path in mine:
                os.replace(path, aside / path.name)
        elif part is not None:
            for path in mine:
                if int(path.name.split("-")[1]) >= part:
                    path.unlink()

    def _is_mine(self, path: Path) -> bool:
        rank = int(path.stem.split("-")[3])
        return rank == self.rank or (self.rank == 0 and rank >= self.ranks)

    def add(self, rows: dict[str, list[Any]]) -> None:
        """Append rows, given as columns of equal length."""
        for name, values in rows.items():
            self._columns.setdefault(name, []).extend(values)

    @property
    def pending(self) -> int:
        """Rows not written yet."""
        return len(next(iter(self._columns.values()), []))

    def flush(self) -> None:
        """Write the rows added so far as one part; every rank must call this at the same moments."""
        if self.pending:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"part-{self.part:05d}-rank-{self.rank:05d}.parquet"
            temporary = path.with_suffix(".tmp")
            pq.write_table(pa.table(self._columns), temporary)
            os.replace(temporary, path)
            self._columns = {}
        self.part += 1


def read_example_log(output_dir: str) -> pa.Table:
    """Return the example log of a run as one table, ordered by step.

    Raises:
        FileNotFoundError: if the run wrote none.
    """
    parts = sorted((Path(output_dir) / FOLDER).glob("part-*.parquet"))
    if not parts:
        raise FileNotFoundError(
            f"There is no example log in {output_dir!r}. Train with `example_log=True` to get one."
        )
    return pa.concat_tables([pq.read_table(part) for part in parts]).sort_by("step")


def _free_name(folder: Path, rank: int) -> Path:
    number = 1
    while any((folder.parent / f"{folder.name}-previous-{number}").glob(f"*-rank-{rank:05d}.parquet")):
        number += 1
    return folder.parent / f"{folder.name}-previous-{number}"
