"""Where a selection keeps what it has scored, and how it scores: everything goes through the scoring engine.

So every component runs on all processes of a launch, shows a progress bar, and after a kill goes on where it was.
"""

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
    """

    folder: Path
    batch_size: int = 8
    seconds: dict[str, float] = field(default_factory=dict)
    known: dict[int, tuple[Dataset, Prompts]] = field(default_factory=dict, repr=False)

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
            rows: of the data, that the items belong to, for messages.
            unit: what the progress bar counts.
        """
        key = fingerprints.digest(name, 1, *identity)
        folder = self.folder / f"{name}-{key}"
        found = load_scores(folder, key, columns, number)
        if found is not None:
            return found
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
