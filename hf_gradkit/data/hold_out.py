"""A random hold-out, fixed before training and recorded beside the model: what makes a privacy audit sound.

    <output_dir>/_hold_out/hold_out.json      seed, fraction, columns, numbers
    <output_dir>/_hold_out/rows.parquet       of each row: hash, id, document, held out or not
    <output_dir>/_hold_out/train.parquet      the rows to train on, and those that are held out, if they were asked for
    <output_dir>/_hold_out/held_out.parquet

The record tells members from non-members, so it is the owner's alone (mode 600), and stays here when the Trainer
pushes its folder to the Hub.
"""

import hashlib
import json
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Audio, Dataset, Image, Video

from .._text import did_you_mean, listing
from .private_files import private_file, write_private

FOLDER, SUMMARY, ROWS = "_hold_out", "hold_out.json", "rows.parquet"
TRAIN, HELD_OUT = "train.parquet", "held_out.parquet"


def row_hash(row: dict[str, Any], columns: list[str]) -> str:
    """Return the hash of a row's values in some columns. 32 hexadecimal digits"""
    text = json.dumps([row[name] for name in columns], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class HoldOutRecord:
    """Which rows were held out, n rows in the order of the data.

    Attributes:
        fraction: what was asked for.
        seed: of the draw.
        columns: whose values the hashes are of.
        hashes: of each row. n strings
        held_out: whether a row was held out. (n,) bool
        ids: of each row, or None without an id column. n strings
        documents: of each row, or None without a document column. n strings
    """

    fraction: float
    seed: int
    columns: list[str]
    hashes: list[str]
    held_out: np.ndarray
    ids: list[str] | None = None
    documents: list[str] | None = None

    def split(self, dataset: Dataset) -> tuple[Dataset, Dataset]:
        """Return the rows of the data that were trained on, and those that were held out, found by their hashes.

        Raises:
            ValueError: if the data lacks a column that was hashed, has rows that the record does not know, or lacks
                all rows of a side.
        """
        missing = [name for name in self.columns if name not in dataset.column_names]
        if missing:
            raise ValueError(
                f"The hold-out was recorded over the columns {listing(self.columns)}, and the data has no "
                f"{missing[0]!r}. Its columns: {listing(dataset.column_names)}. Give the data as it was held out, "
                "before columns were renamed or removed."
            )
        known = dict(zip(self.hashes, self.held_out.tolist(), strict=True))
        found = [known.get(row_hash(row, self.columns)) for row in dataset.with_format(None)]
        strangers = [i for i, side in enumerate(found) if side is None]
        if strangers:
            raise ValueError(
                f"{len(strangers)} of {len(dataset)} rows are not in the record of the hold-out (the first one is row "
                f"{strangers[0]}): they were neither trained on nor held out. Give the data that `hold_out` was given."
            )
        sides = [np.flatnonzero([side is held for side in found]) for held in (False, True)]
        for name, rows in zip(("trained on", "held out"), sides, strict=True):
            if not len(rows):
                raise ValueError(
                    f"None of the {len(dataset)} rows was {name}, by the record of the hold-out. Give the data that "
                    "`hold_out` was given, whole."
                )
        return dataset.select(sides[0]), dataset.select(sides[1])

    def same_rows(self, other: "HoldOutRecord") -> bool:
        """Return whether both are of the same rows, in whatever order, and hold out the same of them."""
        sides = [sorted(zip(of.hashes, of.held_out.tolist(), strict=True)) for of in (self, other)]
        return sides[0] == sides[1]

    def write(self, output_dir: str | os.PathLike) -> Path:
        """Write the record to a model's folder, and return where it is."""
        folder = Path(output_dir) / FOLDER
        table = {"hash": self.hashes, "held_out": self.held_out}
        if self.ids is not None:
            table["id"] = self.ids
        if self.documents is not None:
            table["document"] = self.documents
        with private_file(folder / ROWS) as temporary:
            pq.write_table(pa.table(table), temporary)
        summary = {
            "format": 1,
            "fraction": self.fraction,
            "seed": self.seed,
            "columns": self.columns,
            "rows": len(self.hashes),
            "held_out": int(self.held_out.sum()),
        }
        write_private(folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
        return folder

    @classmethod
    def read(cls, output_dir: str | os.PathLike) -> "HoldOutRecord | None":
        """Return the record in a model's folder or in a folder above a checkpoint, or None if there is none."""
        folder = Path(output_dir).expanduser()
        tops = [folder, *([folder.parent] if folder.name.startswith("checkpoint-") else [])]
        top = next((top / FOLDER for top in tops if (top / FOLDER / SUMMARY).is_file()), None)
        if top is None:
            return None
        summary = json.loads((top / SUMMARY).read_text())
        table = pq.read_table(top / ROWS)

        def optional(name: str) -> list[str] | None:
            return table.column(name).to_pylist() if name in table.column_names else None

        return cls(
            fraction=summary["fraction"],
            seed=summary["seed"],
            columns=summary["columns"],
            hashes=table.column("hash").to_pylist(),
            held_out=table.column("held_out").to_numpy(),
            ids=optional("id"),
            documents=optional("document"),
        )


@dataclass(frozen=True)
class HoldOut:
    """What `hold_out` gives.

    Attributes:
        train: the rows to train on.
        held_out: the rows that no training may see.
        record: says which are which.
    """

    train: Dataset
    held_out: Dataset
    record: HoldOutRecord

    def __iter__(self):
        """Yield the training rows and the held-out rows: `train, held_out = hold_out(...)`."""
        return iter((self.train, self.held_out))

    def write(self, output_dir: str | os.PathLike) -> Path:
        """Write the record and the rows of both sides to a model's folder, and return where they are."""
        folder = self.record.write(output_dir)
        for name, side in ((TRAIN, self.train), (HELD_OUT, self.held_out)):
            with private_file(folder / name) as temporary:
                side.to_parquet(str(temporary))
        return folder


def written_sides(output_dir: str | os.PathLike) -> tuple[Path, Path] | None:
    """Return the files with the rows of both sides in a model's folder, or None if they were not written there."""
    files = tuple(Path(output_dir).expanduser() / FOLDER / name for name in (TRAIN, HELD_OUT))
    return files if all(path.is_file() for path in files) else None


def hold_out(
    dataset: Dataset,
    fraction: float = 0.1,
    seed: int = 0,
    output_dir: str | os.PathLike | None = None,
    id_column: str | None = None,
    document_column: str | None = None,
) -> HoldOut:
    """Hold out a random part of the data before training, so that what the model gives away can be measured.

    Rows of the same content are on the same side, and so are rows of one document. The draw depends on the content
    and the seed alone, and not on the rows' order.

    >>> split = hold_out(dataset, 0.1, output_dir="runs/model")  # the record goes beside the model to be
    >>> SFTTrainer(model, SFTConfig("runs/model"), train_dataset=split.train).train()

    Args:
        dataset: all that might be trained on.
        fraction: share of the rows to hold out, above 0 and below 1.
        seed: of the draw.
        output_dir: folder of the model that is to be trained; the record is written there. Otherwise write it with
            `split.record.write(output_dir)`.
        id_column: ids of rows, kept in the record; no part of their content.
        document_column: rows with the same value are kept together.

    Raises:
        ValueError: for a fraction or a column that cannot be, a stream, or data too small to split.
    """
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"The data is a {type(dataset).__name__}, and rows are held out of a `datasets.Dataset`. Load it without "
            "streaming."
        )
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction < 1:
        raise ValueError(f"`fraction` must be above 0 and below 1, but it is {fraction!r}. 0.1 holds out a tenth.")
    media = [name for name, feature in dataset.features.items() if type(feature) in (Audio, Image, Video)]
    if media:
        raise ValueError(
            f"The column {media[0]!r} has {type(dataset.features[media[0]]).__name__.lower()}s, and rows are told "
            "apart by their values as text. Hold rows out by hand, or remove the column."
        )
    for field, column in (("id_column", id_column), ("document_column", document_column)):
        if column is not None and column not in dataset.column_names:
            raise ValueError(
                f"`{field}` is {column!r}, but the data has no such column."
                f"{did_you_mean(column, dataset.column_names)} Its columns: {listing(dataset.column_names)}."
            )
    plain = dataset.with_format(None)
    columns = sorted(set(dataset.column_names) - {id_column})  # copies have ids of their own
    hashes = [row_hash(row, columns) for row in plain]
    documents = None if document_column is None else [str(value) for value in plain[document_column]]
    held = _draw(hashes, documents, fraction, seed)
    record = HoldOutRecord(
        fraction=fraction,
        seed=seed,
        columns=columns,
        hashes=hashes,
        held_out=held,
        ids=None if id_column is None else [str(value) for value in plain[id_column]],
        documents=documents,
    )
    if output_dir is not None:
        record.write(output_dir)
    return HoldOut(dataset.select(np.flatnonzero(~held)), dataset.select(np.flatnonzero(held)), record)


def _draw(hashes: list[str], documents: list[str] | None, fraction: float, seed: int) -> np.ndarray:
    """Return which rows are held out: as near to the fraction as whole documents allow. (n,) bool"""
    groups = _groups(hashes, documents)
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    if len(members) < 2:
        raise ValueError(
            f"The data has {len(hashes)} rows, but only {len(members)} that differ (by content and document), and a "
            "hold-out needs at least 2. Check the data and `document_column`."
        )
    order = sorted(members)  # by hash: the same whatever the rows' order
    random.Random(f"hold-out-{seed}").shuffle(order)
    held = np.zeros(len(hashes), dtype=bool)
    wanted = fraction * len(hashes)
    for number, group in enumerate(order[:-1]):  # one at least stays for training, and one is held out
        if number and held.sum() + len(members[group]) / 2 > wanted:
            break
        held[members[group]] = True
    return held


def _groups(hashes: list[str], documents: list[str] | None) -> list[str]:
    """Return the group of each row: rows of one document, and documents that share a row, belong together."""
    if documents is None:
        return hashes
    first: dict[str, str] = {}  # of each content and document, the group's name so far

    def find(key: str) -> str:
        while first.setdefault(key, key) != key:
            first[key] = first[first[key]]
            key = first[key]
        return key

    smallest: dict[str, str] = {}
    for content, document in zip(hashes, documents, strict=True):
        first[find(f"document {document}")] = find(content)
    for content in hashes:
        root = find(content)
        smallest[root] = min(content, smallest.get(root, content))
    return [smallest[find(content)] for content in hashes]
