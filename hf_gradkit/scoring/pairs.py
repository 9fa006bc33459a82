"""Preference pairs: the columns they need, what is wrong with them, and which prompt they share."""

from collections.abc import Iterable
from typing import Any

from datasets import Dataset
from trl import extract_prompt, is_conversational

from .._text import did_you_mean, listing
from ..data.columns import column_names

PAIR = ("chosen", "rejected")
CONTENT = (*PAIR, "prompt", "tools", "chat_template_kwargs")  # columns that decide the tokens of a pair


def check_pair_columns(dataset: Any, name: str = "the data") -> None:
    """Raise `ValueError`, naming the columns that there are, unless the data has `chosen` and `rejected`."""
    present = column_names(dataset)
    for column in PAIR:
        if column not in present:
            raise ValueError(
                f"Preference pairs have the columns 'chosen' and 'rejected', but {name} has no {column!r}."
                f"{did_you_mean(column, present)} Its columns: {listing(present)}. Rename them with `column_mapping` "
                "(on the command line) or `dataset.rename_columns`."
            )


def content_columns(dataset: Any) -> list[str]:
    """Return the columns that decide the tokens of the pairs."""
    present = column_names(dataset)
    return [name for name in CONTENT if name in present]


def check_pairs(dataset: Dataset, name: str = "the data") -> int:
    """Return how many pairs have the same chosen and rejected completion.

    Raises:
        ValueError: if a column or a completion is missing; the message names the columns that there are, or the row.
    """
    check_pair_columns(dataset, name)
    identical = 0
    for number, row in enumerate(dataset.with_format(None).select_columns(list(PAIR))):
        for column in PAIR:
            if _is_empty(row[column]):
                _check_keys(row[column], column, number, name)
                raise ValueError(
                    f"Row {number} of {name} has an empty {column!r} completion: {_shorten(row[column])}. There is "
                    "nothing to compare in such a pair; remove the row."
                )
        identical += row["chosen"] == row["rejected"]
    return identical


def identical_message(identical: int, total: int, consequence: str) -> str:
    """Return the warning about pairs whose completions are the same."""
    return f"{identical} of {total} pairs have the same chosen and rejected completion: {consequence}."


def is_conversation(row: dict[str, Any]) -> bool:
    """Return whether a pair is of messages; a prompt that is text beside them says nothing."""
    return is_conversational({"chosen": row["chosen"]})


def _is_empty(completion: Any) -> bool:
    if not isinstance(completion, (list, tuple)):
        return completion is None or not completion.strip()
    if not completion:
        return True
    last = completion[-1]
    content = last.get("content")
    blank = not content.strip() if isinstance(content, str) else not content
    return blank and not last.get("tool_calls")


def _check_keys(completion: Any, column: str, number: int, name: str) -> None:
    """Raise `ValueError` for messages that have another form than `role` and `content`, such as `from` and `value`."""
    keys = completion[-1] if isinstance(completion, (list, tuple)) and completion else {"content": None}
    if "content" not in keys:
        raise ValueError(
            f"The {column!r} messages of row {number} of {name} have no 'content', but the keys {listing(keys)}. "
            "Pairs of conversations are lists of messages with 'role' and 'content': rename the keys."
        )


def _shorten(value: Any, length: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= length else f"...{text[-length:]}"


def prompt_of(row: dict[str, Any]) -> str | list[dict[str, Any]]:
    """Return the prompt of a pair: its column, or what the two completions begin with alike.

    In plain text, what they begin with alike may reach into the completions: a `prompt` column is exact. A `prompt`
    that is text beside conversations is a copy of what they begin with, as in some data sets.
    """
    prompt = row.get("prompt")
    if prompt is not None and isinstance(prompt, str) == isinstance(row["chosen"], str):
        return prompt
    if row["chosen"] == row["rejected"]:  # `extract_prompt` looks for where they part
        return row["chosen"] if isinstance(row["chosen"], str) else row["chosen"][:-1]
    return extract_prompt({name: row[name] for name in PAIR})["prompt"]


def parts_of(row: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Return prompt, chosen and rejected answer of a pair, the answers without the prompt; see `prompt_of`."""
    prompt = prompt_of(row)
    if row.get("prompt") is not None and row["prompt"] is prompt:
        return prompt, row["chosen"], row["rejected"]
    return prompt, row["chosen"][len(prompt) :], row["rejected"][len(prompt) :]


def whole_texts(rows: Iterable[dict[str, Any]], eos_token: str | None) -> Iterable[tuple[Any, Any, dict[str, Any]]]:
    """Yield what a reward model reads of each pair, as `trl.RewardTrainer` prepares it.

    Plain text gets the end token after each completion unless it is there, and the prompt before it. Whether the data
    is plain text is decided by its first row.

    Returns:
        The chosen and the rejected text, or list of messages, and what the chat template is given besides.
    """
    plain = None
    for row in rows:
        if plain is None:
            plain = not is_conversation(row)
        chosen, rejected = (row[column] for column in PAIR)
        if plain and eos_token:
            chosen, rejected = (text if text.endswith(eos_token) else text + eos_token for text in (chosen, rejected))
        prompt = row.get("prompt")
        if prompt is not None and isinstance(prompt, str) == isinstance(chosen, str):
            chosen, rejected = prompt + chosen, prompt + rejected
        yield chosen, rejected, {"tools": row.get("tools"), **(row.get("chat_template_kwargs") or {})}
