"""Difficulty scores as columns of a data set: their names, over one or several models, and which are ours."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from .._text import did_you_mean, listing
from ..data.example_ids import EXAMPLE_ID

TOKEN_ACCURACY = "token_accuracy"  # the one of which a high value is an easy example
SCORES = ("loss", "perplexity", "el2n", "grand", TOKEN_ACCURACY)
LABEL_TOKENS, MODEL = "label_tokens", "difficulty_model"  # further columns
_OURS = re.compile(rf"({'|'.join(SCORES)})(_\d+)?|{LABEL_TOKENS}|{MODEL}")


def check_scores(by: Sequence[str]) -> None:
    """Raise `ValueError` unless these are scores of SFT examples, each once."""
    if not by:
        raise ValueError(f"`by` names no score. Known scores of SFT data: {listing(SCORES)}.")
    for name in by:
        if name not in SCORES:
            raise ValueError(
                f"`by` names {name!r}.{did_you_mean(name, SCORES)} Known scores of SFT data: {listing(SCORES)}."
            )
    if len(set(by)) < len(by):
        raise ValueError(f"`by` names a score twice: {listing(by)}. Name each once.")


@dataclass(frozen=True)
class Difficulty:
    """The scores of SFT examples.

    Attributes:
        columns: each score, and with several models each one's (`el2n_0`, ...) before their mean (`el2n`); NaN for an
            example without a label token. (n,) float64
        by: the scores that were asked for.
        ids: of the examples.
        has_ids: whether they are a column of the data.
        label_tokens: of each example. (n,) int64
        models: name and short hash of each model.
        key: says which models, data, settings and scores these are.
        scored: how many times this call scored an example by a model, on all processes; 0 when all was kept.
        coverage: share of the parameters' entries that GraNd is the norm over, and names of those that it is not.
    """

    columns: dict[str, np.ndarray]
    by: tuple[str, ...]
    ids: list
    has_ids: bool
    label_tokens: np.ndarray
    models: list[str]
    key: str
    scored: int
    coverage: dict[str, Any] | None = None

    @classmethod
    def of(cls, by: tuple[str, ...], figures: list[dict[str, np.ndarray]], **others: Any) -> "Difficulty":
        """Name the figures of each model, and add their means; perplexity is made of the loss."""
        columns: dict[str, np.ndarray] = {}
        for name in by:
            source = "loss" if name == "perplexity" else name
            finish = np.exp if name == "perplexity" else np.asarray
            values = [of_model[source] for of_model in figures]
            if len(values) > 1:
                columns |= {f"{name}_{number}": finish(one) for number, one in enumerate(values)}
            columns[name] = finish(np.mean(values, axis=0))
        return cls(columns=columns, by=by, **others)

    @property
    def model(self) -> str:
        """Name and short hash of what scored."""
        return ", ".join(self.models)


def earlier_ids(dataset: Any) -> str | None:
    """Return the column of ids that the data has under our name for it, or None."""
    return EXAMPLE_ID if EXAMPLE_ID in (dataset.column_names or ()) else None


def without_difficulty(dataset: Dataset) -> Dataset:
    """Return the data without the scores of an earlier scoring; its ids stay.

    Raises:
        ValueError: if the data is streamed, or columns of these names are of another origin.
    """
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"The data is a {type(dataset).__name__}, and scores are columns of a `datasets.Dataset`. Load it without "
            "streaming (dataset_streaming false)."
        )
    taken = [name for name in dataset.column_names if _OURS.fullmatch(name)]
    if taken and MODEL not in taken:
        raise ValueError(
            f"The data has columns {taken} already, which no scoring of hf_gradkit wrote. Rename or remove them."
        )
    return dataset.remove_columns(taken)


def with_difficulty(dataset: Dataset, difficulty: Difficulty) -> Dataset:
    """Return the data with ids, scores and the models' names as columns; None for an example without a score."""
    kind = dataset.format["type"]
    dataset = dataset.with_format(None)
    if not difficulty.has_ids:
        dataset = dataset.add_column(EXAMPLE_ID, difficulty.ids)
    dataset = dataset.add_column(LABEL_TOKENS, difficulty.label_tokens)
    for name, values in difficulty.columns.items():
        dataset = dataset.add_column(name, pa.array(values, mask=np.isnan(values)).to_pylist())
    dataset = dataset.add_column(MODEL, [difficulty.model] * len(dataset))
    return dataset if kind is None else dataset.with_format(kind)
