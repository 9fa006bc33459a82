"""What is looked at in preference pairs before a policy trains on them."""

import logging
from typing import Any

from datasets import Dataset

from ..data.columns import INDEX
from ..scoring.pairs import check_pair_columns, check_pairs, identical_message

logger = logging.getLogger(__name__)


def check_raw_pairs(dataset: Any) -> None:
    """Refuse empty answers and warn of pairs whose answers are the same; streams are looked at as they come.

    Raises:
        ValueError: if a column is missing, or an answer is empty (the message names the row).
    """
    if not isinstance(dataset, Dataset):
        return check_pair_columns(dataset, "the training data")
    identical = check_pairs(dataset, "the training data")
    if identical:
        logger.warning(
            identical_message(identical, len(dataset), "they teach a preference nothing, and pull no way; remove them")
        )


def check_prepared_pairs(dataset: Any, max_length: int | None, given: int | None = None) -> None:
    """Refuse answers without a token and warn of pairs that are dropped or cut, once the data is tokenised.

    Args:
        dataset: as TRL prepared it, with the numbers of the rows.
        max_length: above which TRL cuts prompt and answer, and drops pairs whose prompt alone is as long.
        given: number of pairs before the preparation, or None.

    Raises:
        ValueError: if an answer has no token; the message names the row.
    """
    if not isinstance(dataset, Dataset) or "chosen_ids" not in dataset.column_names:
        return
    if given is not None and len(dataset) < given:
        logger.warning(
            f"{given - len(dataset)} of {given} pairs are dropped: their prompt alone is as long as `max_length` "
            f"({max_length})."
        )
    too_long = 0
    columns = ["prompt_ids", "chosen_ids", "rejected_ids", INDEX]
    for row in dataset.with_format(None).select_columns(columns):
        lengths = {name: len(row[name]) for name in columns[:3]}
        for name in ("chosen_ids", "rejected_ids"):
            if lengths[name] == 0:
                raise ValueError(
                    f"Row {row[INDEX]} of the training data has no token in {name.removesuffix('_ids')!r} after the "
                    "prompt. There is nothing to compare in such a pair; remove the row."
                )
        longest = lengths["prompt_ids"] + max(lengths["chosen_ids"], lengths["rejected_ids"])
        too_long += max_length is not None and longest > max_length
    if too_long:
        logger.warning(
            f"{too_long} of {len(dataset)} pairs are longer than `max_length` ({max_length}) and are cut. Raise it if "
            "memory allows."
        )
