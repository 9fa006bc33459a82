"""Tokens of a data set, kept in a file while they are scored: memory holds their lengths, not them."""

import hashlib
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np

IGNORED = -100  # label of a token that is not learnt


@dataclass(frozen=True)
class TokenRow:
    """One example as the model sees it.

    Attributes:
        input_ids: its tokens. (t,) int64
        labels: the same tokens, -100 where a token is not learnt; the first one is never predicted. (t,) int64
        row: number of the example in the user's data; -1 where it has none.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    row: int = -1

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def label_tokens(self) -> int:
        """How many of its tokens are predicted and learnt."""
        return int((self.labels[1:] != IGNORED).sum())


class TokenFile(Sequence):
    """Sequences of tokens in a file that is gone with this object; 4 bytes a token on disk, 8 a sequence in memory.

    Args:
        sequences: of integers, read once and not kept. (t,) each
    """

    def __init__(self, sequences: Iterable[np.ndarray]):
        folder = Path(datasets.config.HF_DATASETS_CACHE)  # where there is room for data, other than in /tmp
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(prefix="hf_gradkit-tokens-", dir=folder)  # noqa: SIM115 - open as long as this
        ends = array("q", [0])
        for ids in sequences:
            self._file.write(np.asarray(ids, dtype=np.int32).tobytes())
            ends.append(ends[-1] + len(ids))
        self._file.flush()
        self._ends = np.frombuffer(ends, dtype=np.int64)
        self._tokens = np.memmap(self._file, dtype=np.int32, mode="r") if ends[-1] else np.zeros(0, dtype=np.int32)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(number)  # ends an iteration, as for a list
        number = int(number) % len(self)
        return self._tokens[self._ends[number] : self._ends[number + 1]].astype(np.int64)


class TokenRows(Sequence):
    """Examples as the model sees them, in a file; see [`TokenFile`].

    Args:
        rows: the examples, read once and not kept.

    Attributes:
        numbers: the row of the user's data that each is. (n,) int64
        label_tokens: how many tokens of each are learnt. (n,) int64
    """

    def __init__(self, rows: Iterable[TokenRow]):
        numbers, learnt = array("q"), array("q")

        def parts() -> Iterator[np.ndarray]:
            for row in rows:
                numbers.append(row.row)
                learnt.append(row.label_tokens)
                yield row.input_ids
                yield row.labels

        self._tokens = TokenFile(parts())
        self.numbers = np.array(numbers, dtype=np.int64)
        self.label_tokens = np.array(learnt, dtype=np.int64)
        self._places = np.arange(len(self.numbers))

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        place = 2 * int(self._places[number])
        return TokenRow(self._tokens[place], self._tokens[place + 1], int(self.numbers[number]))

    def labelled(self) -> "TokenRows":
        """Return the examples that have tokens to learn, in the same file."""
        chosen = object.__new__(TokenRows)
        there = np.flatnonzero(self.label_tokens)
        chosen._tokens, chosen._places = self._tokens, self._places[there]
        chosen.numbers, chosen.label_tokens = self.numbers[there], self.label_tokens[there]
        return chosen


def hash_token_rows(rows: Iterable[TokenRow]) -> str:
    """Hash tokens and labels of examples, in order. 32 hexadecimal digits"""
    total = hashlib.blake2b(digest_size=16)
    for row in rows:
        total.update(len(row).to_bytes(8, "little"))
        total.update(row.input_ids.tobytes())
        total.update(row.labels.tobytes())
    return total.hexdigest()
