"""What a selector finds out about each row, and what is wrong with it: a selector can be the user's own."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .._text import listing

TABLE = ("row", "kept", "rank", "random", "ruled_out")  # columns of the scores besides what a selector found out


@dataclass
class Assessment:
    """What a selector found out about each row, before it chooses.

    Attributes:
        columns: figures by name, one a row; `"score"` is what rows are chosen by. (n,) each
        ruled_out: by a rule's name, the rows that it takes out. (n,) bool each
        facts: for the report.
        further: what `choose` and `entropies` need, the selector's own.
    """

    columns: dict[str, np.ndarray]
    ruled_out: dict[str, np.ndarray] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    further: dict[str, Any] = field(default_factory=dict)

    @property
    def allowed(self) -> np.ndarray | None:
        """Rows that no rule takes out, or None where there is no rule. (n,) bool"""
        if not self.ruled_out:
            return None
        return ~np.any(list(self.ruled_out.values()), axis=0)

    def add(self, columns: dict[str, Any], rows: int, selector: str) -> None:
        """Put further columns beside those there are; see `check_columns`."""
        check_columns(columns, rows, selector, taken=(*TABLE, *self.columns))
        self.columns |= columns


def check_assessment(found: Any, rows: int, selector: str, taken: tuple[str, ...]) -> None:
    """Raise `ValueError` for what cannot be chosen by, and make arrays of the columns.

    Args:
        found: what the selector's `assess` returned.
        rows: number of rows of the data.
        selector: its name, for messages.
        taken: names of columns that the table of scores gets in any case.
    """
    if not isinstance(found, Assessment):
        raise ValueError(
            f"`assess` of {selector!r} returned a {type(found).__name__}. It must return an `Assessment` with a "
            "column 'score'."
        )
    if "score" not in found.columns:
        raise ValueError(
            f"`assess` of {selector!r} returned no column 'score', which rows are chosen by. Its columns: "
            f"{listing(found.columns) or 'none'}."
        )
    check_columns(found.columns, rows, selector, (*TABLE, *taken))
    if found.columns["score"].dtype.kind not in "fiub":
        raise ValueError(
            f"The `score` of {selector!r} is of type {found.columns['score'].dtype}. It must be one number a row."
        )
    found.columns["score"] = found.columns["score"].astype(np.float64)
    check_columns(found.ruled_out, rows, selector, ())
    found.ruled_out = {name: out.astype(bool) for name, out in found.ruled_out.items()}
    _check_finite(found)


def check_columns(columns: dict[str, Any], rows: int, selector: str, taken: tuple[str, ...]) -> None:
    """Make arrays of columns, or raise `ValueError` for a name that is taken or another number of values than rows."""
    for name in columns:
        if name in taken:
            raise ValueError(
                f"{selector!r} returned a column {name!r}, which the table of scores has already. Give it another "
                "name."
            )
        columns[name] = np.asarray(columns[name])
        if columns[name].shape != (rows,):
            raise ValueError(
                f"{selector!r} returned {name!r} of shape {columns[name].shape} for {rows} rows. It must be one value "
                "a row."
            )


def _check_finite(found: Assessment) -> None:
    """Raise `ValueError` for rows whose score says nothing, unless a rule takes them out."""
    unknown = ~np.isfinite(found.columns["score"])
    if found.allowed is not None:
        unknown &= found.allowed
    if unknown.any():
        raise ValueError(
            f"The `score` of rows {np.flatnonzero(unknown)[:10].tolist()} of the data is not a finite number. Look at "
            "these rows, or rule them out (`ruled_out`)."
        )
