"""The forward engine: a data set through a model, once, by all processes, going on after a kill where it was."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from tqdm.auto import tqdm

from .._text import listing
from .processes import on_main, world
from .work import WorkFolder


class Scorer(Protocol):
    """Turns items into figures, a batch at a time.

    Attributes:
        columns: names of the figures.
    """

    columns: tuple[str, ...]

    def length(self, item: Any) -> int:
        """Return how much work an item is, such as its number of tokens; like goes with like into a batch."""

    def score(self, items: list[Any]) -> dict[str, np.ndarray]:
        """Return the figures of a batch by name, one row an item: (n,) or (n, d) numbers, or (n,) of arrays.

        Arrays of any length are an array of dtype object, see `as_ragged`. Figures must not depend on which other
        items are in the batch.
        """


@dataclass(frozen=True)
class Scores:
    """What a scoring gave.

    Attributes:
        columns: the figures of all items, in their order. (n,) or (n, d) each, or (n,) of arrays
        scored: how many items this call scored, on all processes; the others were scored before.
    """

    columns: dict[str, np.ndarray]
    scored: int


class NonFiniteScoreError(FloatingPointError):
    """A score is not a finite number."""


def score_rows(
    items: Sequence[Any],
    scorer: Scorer,
    folder: str | os.PathLike,
    key: str,
    batch_size: int = 8,
    rows: Sequence[int] | None = None,
    unit: str = "row",
    replace: bool = False,
    in_step: bool = False,
) -> Scores:
    """Score each item once, on all processes of the launch together, and return the figures of all of them on each.

    The longest items come first, so that a batch that does not fit into memory fails at once. Batches are dealt to
    the processes in turn, and a finished one is on disk at once: after a kill, a run with the same key goes on from
    there, with any number of processes and any batch size.

    Args:
        items: what is scored, the same on every process.
        scorer: scores them.
        folder: where the scores are kept, for this key alone; all machines must see it.
        key: says which items, by which model, with which settings; see `hf_gradkit.scoring.fingerprints`.
        batch_size: items in a batch.
        rows: for messages, the row of the user's data that each item belongs to; the item's own number when None.
        unit: what the progress bar counts.
        replace: drop the scores of another key that `folder` holds.
        in_step: let every process call the scorer equally often, as a model that is split over them needs; one that
            has no batch left scores another one's once more, for nothing.

    Raises:
        ValueError: if there are no items, `batch_size` is not a positive integer, `folder` holds the scores of another
            key, the scorer does not keep to its protocol, or rows are missing in the end since machines do not share
            the folder.
        NonFiniteScoreError: for a score that is not finite, naming rows; what was finished before is kept.
    """
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise ValueError(f"`batch_size` must be an integer of at least 1, but it is {batch_size!r}.")
    if not len(items):
        raise ValueError("There is nothing to score: the data has no rows. Check the file, the split and any filter.")
    state = world()
    work = WorkFolder(folder, key, tuple(scorer.columns), len(items))
    # One process looks: what the others would see may already be more, and they would deal out other batches.
    remaining = np.flatnonzero(~on_main(lambda: work.open(replace)))
    batches = _batches(items, remaining, scorer, batch_size)
    done = len(items) - len(remaining)
    hidden = not batches or not state.is_main_process or os.environ.get("TQDM_DISABLE") == "1"
    with (
        work.stream(state.process_index) as stream,
        tqdm(total=len(items), initial=done, unit=unit, desc="scoring", disable=hidden) as bar,
    ):
        for number, batch in enumerate(batches):
            if number % state.num_processes == state.process_index:
                columns = scorer.score([items[i] for i in batch])
                _check(columns, scorer.columns, batch, rows)
                stream.append(batch, columns)
            bar.update(len(batch))
        over = len(batches) % state.num_processes  # so many processes had one batch more than the others
        if in_step and over and state.process_index >= over:
            scorer.score([items[i] for i in batches[-1]])
    state.wait_for_everyone()
    on_main(work.finish)
    return Scores(work.read(), len(remaining))


def load_scores(
    folder: str | os.PathLike, key: str, columns: tuple[str, ...], rows: int
) -> dict[str, np.ndarray] | None:
    """Return the figures of a scoring that is done, on each process, or None: so that no model need be loaded.

    Args:
        folder: as for `score_rows`.
        key: as for `score_rows`.
        columns: of the scorer.
        rows: number of items.
    """
    work = WorkFolder(folder, key, columns, rows)
    return work.read() if on_main(work.is_done) else None


def _batches(items: Sequence[Any], numbers: np.ndarray, scorer: Scorer, batch_size: int) -> list[np.ndarray]:
    """Return the numbers of the items of each batch, the longest items first."""
    lengths = np.array([scorer.length(items[i]) for i in numbers], dtype=np.int64)
    ordered = numbers[np.argsort(-lengths, kind="stable")]
    return [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]


def _check(
    columns: dict[str, np.ndarray], names: tuple[str, ...], batch: np.ndarray, rows: Sequence[int] | None
) -> None:
    if set(columns) != set(names):
        raise ValueError(f"The scorer promised the columns {listing(names)} and returned {listing(columns)}.")
    for name, values in columns.items():
        if len(values) != len(batch):
            raise ValueError(f"The scorer returned {len(values)} values of {name!r} for a batch of {len(batch)}.")
        finite = np.array([np.isfinite(value).all() for value in values])  # (n,)
        if not finite.all():
            bad = sorted({int(i if rows is None else rows[i]) for i in batch[~finite]})
            raise NonFiniteScoreError(
                f"The score {name!r} of rows {bad[:10]} of the data is not a finite number. Look at these rows; with "
                "float16, try dtype='bfloat16' or 'float32'; otherwise the model's weights may be broken."
            )
