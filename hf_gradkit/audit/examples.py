"""The examples of an audit: members and non-members through the very same preparation, checked before any forward."""

import hashlib
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets

from .._text import did_you_mean, listing
from ..data.hold_out import HoldOutRecord, row_hash
from ..scoring.sft_data import SFTFormat, tokenize_sft
from ..scoring.token_rows import IGNORED, TokenRow

NO_RECORD = (
    "The non-members were not held out at random before training by hold_out, or no record of it was given: "
    "differences between the two sets may be what is measured."
)


@dataclass(frozen=True)
class Sides:
    """The two sets of an audit, as data.

    Attributes:
        members: rows that were trained on.
        non_members: rows that were not.
        unsound: why their comparison is not sound, or None if a recorded random hold-out made them.
        documents: of the members and the non-members, one after the other, or None.
    """

    members: Dataset
    non_members: Dataset
    unsound: str | None
    documents: list[str] | None = None


def find_sides(
    dataset: Dataset,
    non_members: Dataset | None,
    record: HoldOutRecord | None,
    document_column: str | None = None,
    most: int | None = None,
    seed: int = 0,
) -> Sides:
    """Return members and non-members, and whether a recorded hold-out made them.

    Args:
        dataset: what `hold_out` was given; with `non_members`, the members.
        non_members: rows that were not trained on, or None to take those that were held out.
        record: of the hold-out, or None.
        document_column: rows with the same value are one document; by default the record's.
        most: rows to take at most of each side, drawn at random.
        seed: of the draw.

    Raises:
        ValueError: without non-members and record, or for rows that are on the wrong side by the record.
    """
    if non_members is None:
        if record is None:
            raise ValueError(
                "There is no record of a hold-out beside the model, so it is not known which rows it was not trained "
                "on. Hold rows out before training (`hf_gradkit.audit.hold_out`), or name the non-members yourself "
                "(`non_members`); the report will then say that the audit is unsound."
            )
        members, others = record.split(dataset)
        unsound = None
    else:
        members, others = dataset, non_members
        unsound = NO_RECORD if record is None else _check_sides(members, others, record)
    sides = [_draw(side, most, seed) for side in (members, others)]
    return Sides(*sides, unsound, _documents(sides, record, document_column))


def _check_sides(members: Dataset, others: Dataset, record: HoldOutRecord) -> str | None:
    """Return why named sets do not follow from the record, or None if they do."""
    held = dict(zip(record.hashes, record.held_out.tolist(), strict=True))
    for side, wanted, name in ((members, False, "members"), (others, True, "non-members")):
        if set(record.columns) - set(side.column_names):
            return f"The {name} lack columns that the record of the hold-out was made over, so it cannot be checked."
        found = [held.get(row_hash(row, record.columns)) for row in side.with_format(None)]
        wrong = sum(value is (not wanted) for value in found)
        if wrong:
            raise ValueError(
                f"{wrong} of {len(side)} {name} are on the other side by the record of the hold-out. Leave "
                "`non_members` out to take the sides from the record."
            )
        unknown = sum(value is None for value in found)
        if unknown:
            return f"{unknown} of {len(side)} {name} are not in the record of the hold-out."
    return None


def _draw(side: Dataset, most: int | None, seed: int) -> Dataset:
    if most is None or len(side) <= most:
        return side
    return side.select(np.sort(np.random.default_rng(seed).permutation(len(side))[:most]))


def _documents(sides: list[Dataset], record: HoldOutRecord | None, column: str | None) -> list[str] | None:
    if column is not None:
        for side in sides:
            if column not in side.column_names:
                raise ValueError(
                    f"`document_column` is {column!r}, but the data has no such column."
                    f"{did_you_mean(column, side.column_names)} Its columns: {listing(side.column_names)}."
                )
        return [str(value) for side in sides for value in side.with_format(None)[column]]
    if record is None or record.documents is None:
        return None
    known = dict(zip(record.hashes, record.documents, strict=True))
    if any(set(record.columns) - set(side.column_names) for side in sides):
        return None
    hashes = [row_hash(row, record.columns) for side in sides for row in side.with_format(None)]
    return [known.get(value, value) for value in hashes]


@dataclass(frozen=True)
class Examples:
    """Tokenised examples, members first, N in all.

    Attributes:
        rows: tokens and labels.
        members: which are members. (N,) bool
        documents: number of the document of each. (N,) int64
        tokenizer: made the tokens.
        unsound: see `Sides`.
    """

    rows: list[TokenRow]
    members: np.ndarray
    documents: np.ndarray
    tokenizer: Any
    unsound: str | None

    @classmethod
    def of(cls, sides: Sides, tokenizer: Any, layout: SFTFormat) -> "Examples":
        """Tokenise both sides in one go, and check them.

        Raises:
            ValueError: if a side is empty, an example has nothing to predict, or members are among the non-members.
        """
        columns = [layout.content_columns(side) for side in (sides.members, sides.non_members)]
        if columns[0] != columns[1]:
            raise ValueError(
                f"The members have the columns {listing(columns[0])} and the non-members {listing(columns[1])}, so "
                "they would not be prepared alike. Give both in the same format."
            )
        for name, side in (("members", sides.members), ("non-members", sides.non_members)):
            if not len(side):
                raise ValueError(f"There are no {name}. An audit compares members with non-members; both are needed.")
        # In one data set, so that no difference of features, formats or first rows can lead to another preparation.
        both = [side.with_format(None).select_columns(columns[0]) for side in (sides.members, sides.non_members)]
        rows = tokenize_sft(concatenate_datasets([both[0], both[1].cast(both[0].features)]), tokenizer, layout)
        members = np.arange(len(rows)) < len(both[0])
        documents = sides.documents or token_hashes(rows)  # copies of an example are one document
        numbered = np.unique(np.array(documents), return_inverse=True)[1]
        examples = cls(rows, members, numbered.astype(np.int64), tokenizer, sides.unsound)
        examples.check()
        return examples

    def check(self) -> None:
        """Raise `ValueError` for examples without a token to predict, and members among the non-members."""
        empty = [row.row for row in self.rows if row.label_tokens == 0]
        if empty:
            raise ValueError(
                f"{len(empty)} of {len(self.rows)} examples have no token to predict (the first ones, members first: "
                f"{empty[:5]}): they are empty, or `max_length` cuts their completion off. Remove them; training "
                "leaves them out as well."
            )
        count = int(self.members.sum())
        inside = set(self.hashes[:count])
        shared = [value for value in self.hashes[count:] if value in inside]
        if shared:
            raise ValueError(
                f"{len(shared)} non-members are members as well, token by token (hashes of some: "
                f"{', '.join(value[:12] for value in shared[:5])}). Remove them from the non-members."
            )

    @cached_property
    def hashes(self) -> list[str]:
        """Hash of each example's tokens and labels. 32 hexadecimal digits"""
        return token_hashes(self.rows)

    @cached_property
    def texts(self) -> list[str]:
        """The text of each example, without special tokens."""
        return self.tokenizer.batch_decode([row.input_ids for row in self.rows], skip_special_tokens=True)

    @cached_property
    def learnt_zlib_bytes(self) -> np.ndarray:
        """Length after zlib of the text that is learnt, of a completion without its prompt. (N,) bytes"""
        learnt = [row.input_ids[row.labels != IGNORED] for row in self.rows]
        return zlib_bytes(self.tokenizer.batch_decode(learnt, skip_special_tokens=True))

    @property
    def tokens(self) -> np.ndarray:
        """Number of tokens of each example. (N,)"""
        return np.array([len(row) for row in self.rows])

    @property
    def special_tokens(self) -> np.ndarray:
        """Number of special tokens of each example. (N,)"""
        special = list(self.tokenizer.all_special_ids)
        return np.array([np.isin(row.input_ids, special).sum() for row in self.rows])


def token_hashes(rows: list[TokenRow]) -> list[str]:
    """Return the hash of each row's tokens and labels. 32 hexadecimal digits each"""
    return [
        hashlib.blake2b(row.input_ids.tobytes() + row.labels.tobytes(), digest_size=16).hexdigest() for row in rows
    ]


def zlib_bytes(texts: list[str]) -> np.ndarray:
    """Return the length of each text after zlib. (n,) bytes"""
    return np.array([len(zlib.compress(text.encode())) for text in texts])
