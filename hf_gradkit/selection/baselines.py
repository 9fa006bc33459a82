"""Selections that any other one has to beat: at random, and by length."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from datasets import Dataset

from .._text import listing
from .base import Assessment, Selector, check_choice
from .summary import lengths
from .work import Work


@dataclass(frozen=True, kw_only=True)
class Random(Selector):
    """Keeps rows at random: the score is drawn, uniform in 0 to 1."""

    name: ClassVar[str] = "random"

    def assess(self, dataset: Dataset, work: Work) -> Assessment:
        """Return a score that is drawn for each row."""
        return Assessment({"score": np.random.default_rng([self.seed, 6]).random(len(dataset))})


@dataclass(frozen=True, kw_only=True)
class Length(Selector):
    """Keeps the rows with the longest answers, in characters: of a pair, the chosen one.

    Args:
        prefer: `"long"` or `"short"`.
    """

    prefer: str = "long"

    name: ClassVar[str] = "length"

    def __post_init__(self):
        super().__post_init__()
        check_choice("prefer", self.prefer, ("long", "short"))

    def assess(self, dataset: Dataset, work: Work) -> Assessment:
        """Return the length of each answer as its score, or minus the length."""
        found = lengths(dataset)
        if not found:
            raise ValueError(
                "The data has no answers whose length could count: it needs 'chosen' and 'rejected', 'completion', "
                f"'messages' or 'text'. Its columns: {listing(dataset.column_names)}."
            )
        values = next(iter(found.values()))
        return Assessment({"score": values if self.prefer == "long" else -values})
