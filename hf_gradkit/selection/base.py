"""What every selector shares: how much is kept, what comes back, and the comparison with a random choice.

A selector is a frozen dataclass: its fields are its options. It states `assess`, which gives each row a score, and
inherits the rest; one that chooses otherwise than by the highest scores states `choose` as well.
"""

import dataclasses
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
from datasets import Dataset, IterableDataset

from .._compat import versions
from .._methods import plain
from .._text import listing
from ..scoring.pairs import PAIR, check_pairs
from ..scoring.processes import on_main
from .assessment import Assessment, check_assessment
from .components import describe, named_models
from .picking import highest, size_of
from .summary import lengths, summarize
from .work import Work

LIBRARIES = ("hf-gradkit", "torch", "transformers", "datasets")


@dataclass(frozen=True)
class Selection:
    """What a selector kept.

    Attributes:
        dataset: the rows kept, in their order, with the columns that they had.
        scores: one row an input row, in order: `row`, `kept`, `rank` (0 is the best, -1 not kept), `random`
            (whether it is among as many rows drawn at random), `ruled_out` (the rule's name, or empty), every figure
            that the selector computed, and the lengths of answers in characters.
        report: figures of what was kept and dropped, as JSON can write them.
        kept: numbers of the rows kept; one that was drawn more than once is there as often. (K,) int64
        added: columns that the rows got from the selector, such as weights. (K,) each
    """

    dataset: Dataset
    scores: Dataset
    report: dict[str, Any]
    kept: np.ndarray
    added: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Selector(ABC):
    """What all selectors take.

    Args:
        fraction: share of the rows that is kept, above 0 and at most 1; or
        count: how many rows are kept.
        seed: of everything that is drawn; the same seed and data give the same selection.
        batch_size: rows in a batch of one process, for what scores with a model.
        cache_folder: where scores are kept, so that they need not be made twice; by default beside the cache of
            `datasets`.
    """

    fraction: float | None = None
    count: int | None = None
    seed: int = 0
    batch_size: int = 8
    cache_folder: str | os.PathLike | None = None

    name: ClassVar[str] = ""
    model_options: ClassVar[tuple[str, ...]] = ()  # options that name a model, or a list of them

    def __post_init__(self):
        for option in dataclasses.fields(self):  # of numpy's numbers, which no report can write, plain ones
            object.__setattr__(self, option.name, plain(getattr(self, option.name)))
        size_of(self.fraction, self.count, max(1, self.count if isinstance(self.count, int) else 1))
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            raise ValueError(f"`seed` must be an integer of at least 0, but it is {self.seed!r}.")
        if not isinstance(self.batch_size, int) or isinstance(self.batch_size, bool) or self.batch_size < 1:
            raise ValueError(f"`batch_size` must be an integer of at least 1, but it is {self.batch_size!r}.")

    def models(self) -> dict[str, Any]:
        """Return name and short hash of the content of each model that scores, by option; on all processes.

        The content is part of what a selection is: a name stands for other weights after the next training.
        """
        return named_models(self)

    def check(self, dataset: Dataset) -> None:
        """Raise `ValueError` for data that cannot be selected from; called before anything is scored.

        Pairs need both of their answers, whatever they are selected by: what reads them later would fail.
        """
        if set(PAIR) <= set(dataset.column_names):
            check_pairs(dataset)

    @abstractmethod
    def assess(self, dataset: Dataset, work: Work) -> Assessment:
        """Return a score for each row; called on all processes, with the same result on each."""

    def choose(self, found: Assessment, size: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the rows to keep, best first, and further columns for the scores; called on the main process.

        Fewer rows than `size` where rules leave fewer. (K,) int64 and (n,) each
        """
        return highest(found.columns["score"], size, self.seed, found.allowed), {}

    def describe_choice(self, dataset: Dataset, found: Assessment, kept: np.ndarray, drawn: np.ndarray) -> dict:
        """Return the selector's own figures for the report, of the rows kept and of as many drawn at random."""
        return {}

    def added(self, found: Assessment, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Return columns that the rows kept get, such as weights. (K,) each"""
        return {}

    def select(self, dataset: Dataset) -> Selection:
        """Score the rows of a data set and keep the best, as the options say.

        Call it on all processes of a launch: they share the work, and all of them get the same.

        Raises:
            ValueError: if the data is streamed or empty, columns or answers are missing, more rows are asked for than
                there are, a component says nothing or something that it must not say, a score is not finite, or rules
                leave too few rows.
            NonFiniteScoreError: for a score of a model that is not finite, naming rows.
        """
        check_dataset(dataset)
        size = size_of(self.fraction, self.count, len(dataset))
        self.check(dataset)
        folder = self.cache_folder or Path(datasets.config.HF_DATASETS_CACHE) / "hf_gradkit" / "selection"
        work = Work(Path(folder), self.batch_size)
        models = self.models()
        found, answers = self.assess(dataset, work), lengths(dataset)
        check_assessment(found, len(dataset), self._name, taken=tuple(answers))
        found.columns |= answers
        kept, further = on_main(lambda: self.choose(found, size))
        assessed = dict(found.columns)
        found.add(further, len(dataset), self._name)  # of the rows kept alone: nothing to compare with the others
        if len(kept) < size:
            raise ValueError(self._too_few(len(kept), size, found))
        drawn = np.random.default_rng([self.seed, 4]).permutation(len(dataset))[: len(kept)]

        def report() -> dict[str, Any]:
            with work.timed("report"):
                figures = summarize(dataset, assessed, kept, drawn)
                own = self.describe_choice(dataset, found, kept, drawn)
            head = {**self._head(dataset, kept, found), "models": models}
            return {**head, **figures, **found.facts, **own, "seconds": work.seconds}

        rows = np.sort(kept)
        added = self.added(found, rows)
        return Selection(
            dataset=take(dataset, rows, added),
            scores=_scores(found, kept, drawn, len(dataset)),
            report=on_main(report),
            kept=rows,
            added=added,
        )

    @property
    def _name(self) -> str:
        return self.name or type(self).__name__

    def _head(self, dataset: Dataset, kept: np.ndarray, found: Assessment) -> dict[str, Any]:
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "cache_folder"}
        options = {
            name: describe(value) if callable(value) or isinstance(value, Dataset) else value
            for name, value in fields.items()
        }
        return {
            "format": 1,
            "by": self._name,
            "options": options,
            "rows": len(dataset),
            "kept": len(kept),
            "ruled_out": {name: int(rows.sum()) for name, rows in found.ruled_out.items()},
            "versions": versions(LIBRARIES),
        }

    def _too_few(self, left: int, size: int, found: Assessment) -> str:
        rules = ", ".join(f"{name!r} takes out {int(rows.sum())}" for name, rows in found.ruled_out.items())
        return (
            f"{size} rows are asked for, and only {left} are left by the rules{f' ({rules})' if rules else ''}. Ask "
            "for fewer (`fraction`, `count`), or loosen the rules."
        )


def take(dataset: Dataset, rows: np.ndarray, added: dict[str, np.ndarray]) -> Dataset:
    """Return rows of a data set, with further columns.

    Raises:
        ValueError: if the data has a column of such a name already.
    """
    check_added(dataset, added)
    selected = dataset.select(rows)
    for name, values in added.items():
        selected = selected.add_column(name, values)
    return selected


def check_added(dataset: Dataset, names: Iterable[str]) -> None:
    """Raise `ValueError` if the data has a column already that the selection adds."""
    taken = [name for name in names if name in dataset.column_names]
    if taken:
        raise ValueError(
            f"The selection adds the column {taken[0]!r}, and the data has one of that name. Rename or remove it."
        )


def _remedy(dataset: Any) -> str:
    if isinstance(dataset, dict):  # a `DatasetDict` too
        return f"Give one of its splits: {listing(dataset)}."
    if isinstance(dataset, IterableDataset):
        return "Load it without streaming (dataset_streaming false)."
    return "Make one with `Dataset.from_list` or `load_dataset`."


def check_dataset(dataset: Any) -> None:
    """Raise `ValueError` unless this is a data set with rows whose whole can be looked at."""
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"The data is a {type(dataset).__name__}, and rows are selected from a whole `datasets.Dataset`. "
            + _remedy(dataset)
        )
    if not len(dataset):
        raise ValueError("The data has no rows, so there is nothing to select. Check the file and the split.")


def check_choice(name: str, value: Any, known: tuple) -> None:
    """Raise `ValueError` for an option that is none of the known values."""
    if value not in known:
        raise ValueError(f"`{name}` is {value!r}. Known values: {listing(known)}.")


def _scores(found: Assessment, kept: np.ndarray, drawn: np.ndarray, rows: int) -> Dataset:
    rank = np.full(rows, -1, dtype=np.int64)
    best_first, first = np.unique(kept, return_index=True)  # a row that is drawn twice has the place of the first time
    rank[best_first] = first
    ruled_out = np.full(rows, "", dtype=object)
    for name, out in found.ruled_out.items():
        ruled_out[out & (ruled_out == "")] = name
    numbers = np.arange(rows)
    columns = {"row": numbers, "kept": rank >= 0, "rank": rank, "random": np.isin(numbers, drawn)}
    columns["ruled_out"] = ruled_out.tolist()
    return Dataset.from_dict({**columns, **found.columns})
