"""Whether data are conversations or plain text."""

from typing import Any

from datasets import Dataset
from trl import is_conversational

COLUMNS = {"prompt", "completion", "chosen", "rejected", "messages", "conversations", "text"}


def holds_conversations(dataset: Any) -> bool | None:
    """Return whether the rows of a data set are conversations, which a chat template writes out.

    Args:
        dataset: the data as the user gave it.

    Returns:
        None where that cannot be seen: a stream, which is not read for this, tokens, or columns of other names.
    """
    if not isinstance(dataset, Dataset) or not len(dataset) or not COLUMNS & {*dataset.column_names}:
        return None
    first = {name: value for name, value in dataset[0].items() if value != []}
    return "conversations" in first or is_conversational(first)
