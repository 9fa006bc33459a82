"""Columns that travel with each example - its number, weight, group, id - from the raw rows to the batch.

TRL and transformers drop columns that the model does not take, in the data set and again in the collator, and packing
drops all but the tokens. Here they are attached before the parent prepares the data, kept beside the tokens, and put
into the batch under one key, `INFO`, which the trainer takes out again: the model never sees it.
"""

import math
import numbers
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset

from .._text import did_you_mean, listing

INDEX = "example_index"  # number of the row in the data set that the user gave
ITEM = "example_item"  # number of the row that the sampler draws; packed rows hold several examples
INFO = "example_info"  # key of the batch that holds an `ExampleInfo`


@dataclass(frozen=True)
class ExampleColumns:
    """The data set's columns that accompany an example, each None when there is none.

    Args:
        weight: numbers >= 0 that multiply the example's loss.
        group: names, for figures of each group.
        example_id: ids for the example log; the row number when None.
        margin: reward margins of preference pairs, signed.
    """

    weight: str | None = None
    group: str | None = None
    example_id: str | None = None
    margin: str | None = None

    @property
    def of_user(self) -> list[str]:
        """The user's columns that are set."""
        return [name for _, name in self._roles if name is not None]

    @property
    def _roles(self) -> list[tuple[str, str | None]]:
        return [
            ("weight_column", self.weight),
            ("group_column", self.group),
            ("example_id_column", self.example_id),
            ("reward_margin_column", self.margin),
        ]

    @property
    def names(self) -> list[str]:
        """All columns that accompany an example, ours and the user's."""
        return list(dict.fromkeys([INDEX, ITEM, *self.of_user]))

    def attach(self, dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
        """Check the user's columns and number the rows.

        Raises:
            ValueError: if a column is missing (the message names those there are), a name of ours is taken, a weight
                is negative, not finite or not a number, or a margin not a finite number (the message names the row).
        """
        present = column_names(dataset)
        for field, name in self._roles:
            if name is not None and name not in present:
                raise ValueError(
                    f"`{field}` is {name!r}, but the training data has no such column."
                    f"{did_you_mean(name, present)} Its columns: {listing(present)}."
                )
        for name in (INDEX, ITEM):
            if name in present:
                raise ValueError(
                    f"The training data has a column {name!r}, a name that hf_gradkit uses for itself. Rename the "
                    "column."
                )
        if isinstance(dataset, IterableDataset):
            return dataset.map(_number_row, with_indices=True)  # weights of a stream are checked as they come
        if self.weight is not None:
            check_weights(dataset.with_format(None)[self.weight], self.weight)
        if self.margin is not None:
            for row, margin in enumerate(dataset.with_format(None)[self.margin]):
                check_margin(margin, self.margin, row)
        rows = np.arange(len(dataset), dtype=np.int64)
        chosen = dataset.format  # a format with chosen columns would hide ours
        dataset = dataset.with_format(None).add_column(INDEX, rows).add_column(ITEM, rows)
        if chosen["type"] is None and set(chosen["columns"]) == set(present):
            return dataset
        shown = list(dict.fromkeys([*chosen["columns"], *self.names]))
        return dataset.with_format(chosen["type"], columns=shown, **chosen["format_kwargs"])


def _number_row(row: dict[str, Any], index: int) -> dict[str, int]:
    return {INDEX: index, ITEM: index}


def column_names(dataset: Any) -> list[str]:
    """Return the columns of a data set; a stream that does not know them is asked for its first row."""
    if getattr(dataset, "column_names", None) is not None:
        return list(dataset.column_names)
    return list(next(iter(dataset)))


def check_weights(weights: Any, column: str, first_row: int = 0) -> None:
    """Raise `ValueError`, with the row, for a weight that is negative, not finite or not a number."""
    for row, weight in enumerate(weights, start=first_row):
        check_weight(weight, column, row)


def check_weight(weight: Any, column: str, row: int) -> None:
    """Raise `ValueError` unless `weight` is a finite number >= 0."""
    problem = _problem(weight) or ("is negative" if weight < 0 else None)
    if problem:
        raise ValueError(
            f"Row {row} has {weight!r} in `weight_column` {column!r}, which {problem}. Weights must be finite numbers "
            "of at least 0; 0 drops the example's gradient."
        )


def check_margin(margin: Any, column: str, row: int) -> None:
    """Raise `ValueError` unless `margin` is a finite number."""
    problem = _problem(margin)
    if problem:
        raise ValueError(
            f"Row {row} has {margin!r} in `reward_margin_column` {column!r}, which {problem}. Margins are the reward "
            "of the chosen minus the reward of the rejected answer, one finite number a pair: score the data again "
            "(gradkit score --by reward), or leave the row out."
        )


def _problem(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return "is not a number"
    return None if math.isfinite(value) else "is not finite"


@dataclass
class ExampleInfo:
    """What a batch's examples carry besides their tokens, n examples in the batch's order.

    Attributes:
        index: row numbers in the user's data set; -1 where unknown. (n,) int64
        item: numbers of the rows that the sampler drew; -1 where unknown. (n,) int64
        weight: the data's own weights, 1 without a weight column. (n,) float64
        group: group names, or None without a group column. n strings
        example_id: ids, or None without an id column. n strings or integers
        segments: for a flattened batch, the example that each token belongs to, -1 for padding; None when each row
            of the batch is one example. (tokens,) int64
        multipliers: what the weighting method gave, when that was computed ahead (scope "step"). (n,) float64
        margin: reward margins, or None without a margin column. (n,) float64
    """

    index: torch.Tensor
    item: torch.Tensor
    weight: torch.Tensor
    group: list[str] | None = None
    example_id: list | None = None
    segments: torch.Tensor | None = None
    multipliers: torch.Tensor | None = None
    margin: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.index)


class ExampleCollator:
    """A data collator that adds an [`ExampleInfo`] to what another collator makes.

    Args:
        collator: makes the batch, from features without the accompanying columns.
        columns: the columns that accompany an example.
        training: False leaves the batch without `INFO`: evaluation is never weighted.
        keep: columns that the model takes; one that is both, such as a class label as group, stays for it.
        rows_per_example: 2 where the batch holds the chosen answers and after them the rejected ones.
    """

    def __init__(
        self,
        collator: Any,
        columns: ExampleColumns,
        training: bool,
        keep: list[str] | tuple = (),
        rows_per_example: int = 1,
    ):
        self.collator = collator
        self.rows_per_example = rows_per_example
        self.columns = columns
        self.training = training
        self.dropped = set(columns.names) - set(keep)

    def __call__(self, features: list[dict[str, Any]]) -> Any:
        dropped = self.dropped
        batch = self.collator([{k: v for k, v in feature.items() if k not in dropped} for feature in features])
        if self.training:
            batch[INFO] = self._info(features, batch)
        return batch

    def _info(self, features: list[dict[str, Any]], batch: Any) -> ExampleInfo:
        columns = self.columns
        packed = "seq_lengths" in features[0]

        def values(name: str) -> list:
            per_row = [feature[name] for feature in features]
            flat = [value for row in per_row for value in row] if packed else per_row
            return [value.item() if isinstance(value, torch.Tensor) else value for value in flat]

        numbered = INDEX in features[0]
        index = torch.tensor(values(INDEX)) if numbered else None
        segments = _segments(features, batch, packed, self.rows_per_example)
        n = len(index) if numbered else len(features)
        item = torch.tensor([feature[ITEM] for feature in features]) if numbered else None
        if numbered and packed:
            item = item.repeat_interleave(torch.tensor([len(feature["seq_lengths"]) for feature in features]))
        for name in columns.of_user:
            if name not in features[0]:
                raise ValueError(
                    f"The column {name!r} did not survive the preparation of the training data. Columns that are "
                    f"left: {listing(features[0])}."
                )
        weights = values(columns.weight) if columns.weight else [1.0] * n
        if columns.weight:
            for row, weight in zip(index.tolist() if numbered else range(n), weights, strict=True):
                check_weight(weight, columns.weight, row)
        margins = values(columns.margin) if columns.margin else None
        if margins is not None:
            for row, margin in zip(index.tolist() if numbered else range(n), margins, strict=True):
                check_margin(margin, columns.margin, row)
        return ExampleInfo(
            index=index if numbered else torch.full((n,), -1),
            item=item if numbered else torch.full((n,), -1),
            weight=torch.tensor(weights, dtype=torch.float64),
            group=[str(value) for value in values(columns.group)] if columns.group else None,
            example_id=values(columns.example_id) if columns.example_id else None,
            segments=segments,
            margin=torch.tensor(margins, dtype=torch.float64) if margins is not None else None,
        )


def _segments(features: list[dict[str, Any]], batch: Any, packed: bool, per_example: int) -> torch.Tensor | None:
    """Return which example each token of a flattened batch belongs to, or None if rows belong to examples."""
    rows = next(len(v) for v in batch.values() if isinstance(v, torch.Tensor) and v.dim() > 0)
    if rows == per_example * len(features) and not packed:
        return None
    if per_example != 1:
        raise ValueError(
            f"The data collator made {rows} rows of {len(features)} pairs. Weights and objectives of pairs need a "
            "collator like TRL's: the chosen answers of the batch, and after them the rejected ones."
        )
    if rows != 1 or "input_ids" not in features[0]:
        raise ValueError(
            f"The data collator made {rows} rows of {len(features)} examples, so the loss cannot be told apart by "
            "example. Use a collator that keeps one row an example, or TRL's padding-free one."
        )
    lengths = [n for f in features for n in f["seq_lengths"]] if packed else [len(f["input_ids"]) for f in features]
    segments = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    padding = batch["input_ids"].shape[1] - len(segments)
    return torch.cat([segments, segments.new_full((padding,), -1)])
