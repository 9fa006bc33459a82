"""Where a selection keeps what it has scored, and how it scores: everything goes through the scoring engine.

So every component runs on all processes of a launch, shows a progress bar, and after a kill goes on where it was.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from ..scoring import fingerprints
from ..scoring.engine import Scorer, load_scores, score_rows
from ..scoring.processes import world
from .prompts import Prompts


@dataclass(frozen=True)
class Work:
    """Scores what components ask for, once, and keeps it under a hash of what was scored by what.

    Attributes:
        folder: holds one folder a component.
        batch_size: rows in a batch of one process, for components with a model.
        seconds: what each part of the selection took, by name; filled as it goes.
        known: prompts of data sets that were read, by identity.
        origin: the row of the user's data that each row of the data set scored here is, where it is a part of it.
    """

    folder: Path
    batch_size: int = 8
    seconds: dict[str, float] = field(default_factory=dict)
    known: dict[int, tuple[Dataset, Prompts]] = field(default_factory=dict, repr=False)
    origin: np.ndarray | None = None

    def of_part(self, rows: np.ndarray) -> "Work":
        """Return what scores a part of the data set, these rows of it, and names them as the data set does."""
        return dataclasses.replace(self, origin=self.in_data(rows))

    def in_data(self, rows: Sequence[int]) -> np.ndarray:
        """Return the rows of the user's data that rows of the data set scored here are."""
        return np.asarray(rows) if self.origin is None else self.origin[np.asarray(rows)]

    @property
    def device(self) -> Any:
        """Where this process computes."""
        return world().device

    def prompts(self, dataset: Dataset) -> Prompts:
        """Return the prompts of a data set, read once."""
        if id(dataset) not in self.known:
            self.known[id(dataset)] = dataset, Prompts.of(dataset)
        return self.known[id(dataset)][1]

    def score(
        self,
        name: str,
        identity: tuple,
        columns: tuple[str, ...],
        number: int,
        make: Callable[[], AbstractContextManager[tuple[Sequence[Any], Scorer]]],
        batch_size: int | None = None,
        rows: Sequence[int] | None = None,
        unit: str = "row",
    ) -> dict[str, np.ndarray]:
        """Return the figures of all items, scored now or before; no model is loaded where they are there.

        Args:
            name: of the folder, for people.
            identity: everything that the figures depend on, as values that JSON can write.
            columns: of the scorer.
            number: how many items there are.
            make: gives the items and their scorer; what it loads is let go of when it ends.
            batch_size: another one than the selection's.
            rows: of the data set, that the items belong to, for messages; the items are its rows when None.
            unit: what the progress bar counts.
        """
        key = fingerprints.digest(name, 1, *identity)
        folder = self.folder / f"{name}-{key}"
        found = load_scores(folder, key, columns, number)
        if found is not None:
            return found
        rows = self.in_data(np.arange(number) if rows is None else rows)
        with make() as (items, scorer):
            found = score_rows(items, scorer, folder, key, batch_size or self.batch_size, rows=rows, unit=unit).columns
        del items, scorer
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return found

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the time that a part takes to `seconds`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
