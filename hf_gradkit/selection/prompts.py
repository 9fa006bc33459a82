"""The prompts of a data set as texts, and which rows share one."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from .._text import listing
from ..scoring import fingerprints
from ..scoring.pairs import prompt_of

SOURCES = ("prompt", "chosen", "rejected", "messages", "text")  # columns that a prompt is read from


def prompt_text(row: dict[str, Any]) -> str:
    """Return the prompt of a row as one text.

    That of a preference pair is its `prompt`, or what its two completions begin with alike; that of other data its
    `prompt`, the `messages` before the last answer, or the whole `text`. Messages become lines of `role: content`.

    Raises:
        ValueError: if the row has none of these.
    """
    if row.get("chosen") is not None and row.get("rejected") is not None:
        return as_text(prompt_of(row))
    if row.get("prompt") is not None:
        return as_text(row["prompt"])
    if row.get("messages"):
        messages = row["messages"]
        return as_text(messages[:-1] if messages[-1].get("role") == "assistant" else messages)
    if row.get("text") is not None:
        return row["text"]
    raise ValueError(
        f"A row has no prompt: it needs one of the columns 'prompt', 'chosen' and 'rejected', 'messages' or 'text'. "
        f"Its columns: {listing(row)}."
    )


def as_text(value: Any) -> str:
    """Return text as it is, and messages as lines of `role: content`; of other content, its text parts."""
    if isinstance(value, str):
        return value
    return "\n".join(f"{message.get('role', '')}: {_content(message.get('content'))}" for message in value)


def content_text(value: Any) -> str:
    """Return text as it is, and of messages what they say, without the names of roles."""
    if value is None or isinstance(value, str):
        return value or ""
    return "\n".join(_content(message.get("content")) for message in value)


def last_answer(messages: Any) -> list[dict[str, Any]]:
    """Return the assistant's last turn, as a list of one message or none."""
    return [message for message in messages or () if message.get("role") == "assistant"][-1:]


def _content(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return " ".join(part.get("text") or "" for part in content)


@dataclass(frozen=True)
class Prompts:
    """The different prompts of a data set.

    Attributes:
        texts: each different prompt once, in the order in which they appear. U texts
        rows: the first row with each. (U,) int64
        of_row: number of each row's prompt. (n,) int64
    """

    texts: list[str]
    rows: np.ndarray
    of_row: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def fingerprint(self) -> str:
        """Hash of the texts."""
        return fingerprints.digest(self.texts)

    @classmethod
    def of(cls, dataset: Dataset) -> "Prompts":
        """Read the prompts of a data set.

        Raises:
            ValueError: if it has no column that holds a prompt; the message names those that there are.
        """
        present = [name for name in SOURCES if name in dataset.column_names]
        if not present or (present == ["chosen"] or present == ["rejected"]):
            raise ValueError(
                f"The data has no prompts: it needs one of the columns 'prompt', 'chosen' and 'rejected', 'messages' "
                f"or 'text'. Its columns: {listing(dataset.column_names)}. Rename them with `column_mapping` (on the "
                "command line) or `dataset.rename_columns`."
            )
        numbers: dict[str, int] = {}
        rows, of_row = [], np.empty(len(dataset), dtype=np.int64)
        for row, content in enumerate(dataset.with_format(None).select_columns(present)):
            text = prompt_text(content)
            number = numbers.setdefault(text, len(numbers))
            if number == len(rows):
                rows.append(row)
            of_row[row] = number
        return cls(list(numbers), np.array(rows, dtype=np.int64), of_row)
