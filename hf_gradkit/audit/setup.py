"""What both audits begin with: the model, its tokenizer, and the examples of the two sides."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from ..data.hold_out import HoldOutRecord
from ..scoring import fingerprints
from ..scoring.sft_data import SFTFormat
from ..scoring.token_rows import TokenRow
from .examples import Examples, find_sides
from .models import REFERENCE, TARGET, AuditedModel


def load_examples(
    models: AuditedModel,
    dataset: Dataset,
    non_members: Dataset | None = None,
    hold_out: HoldOutRecord | str | os.PathLike | None = None,
    tokenizer: Any = None,
    layout: SFTFormat | None = None,
    document_column: str | None = None,
    most: int | None = None,
    seed: int = 0,
) -> Examples:
    """Return the examples of an audit, tokenised as in training and checked.

    Args:
        models: what is audited.
        dataset: what `hold_out` was given; with `non_members`, the members.
        non_members: rows that were not trained on, or None to take those that were held out.
        hold_out: the record of the hold-out, or the folder that has it; by default the model's folder.
        tokenizer: the model's; by default the one that was saved with it.
        layout: how tokens and labels were made in training; TRL's defaults when None.
        document_column: rows with the same value are one document; by default the record's.
        most: rows to take at most of each side, drawn at random.
        seed: of the draw.

    Raises:
        ValueError: for data, tokenizers and records that do not fit the model or each other.
    """
    for name, given in (("dataset", dataset), ("non_members", non_members)):
        if given is not None and not isinstance(given, Dataset):
            raise ValueError(
                f"`{name}` is a {type(given).__name__}, and an audit needs a `datasets.Dataset`. Load it without "
                "streaming."
            )
    if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 2):
        raise ValueError(f"`max_examples` must be a whole number of at least 2, but it is {most!r}.")
    tokenizer = _find_tokenizer(models, tokenizer)
    record = _find_record(models, hold_out)
    sides = find_sides(dataset, non_members, record, document_column, most, seed)
    examples = Examples.of(sides, tokenizer, layout or SFTFormat())
    _check_reference(models, tokenizer, examples.rows)
    return examples


def _find_record(models: AuditedModel, given: Any) -> HoldOutRecord | None:
    if isinstance(given, HoldOutRecord):
        return given
    if given is not None:
        record = HoldOutRecord.read(given)
        if record is None:
            raise ValueError(f"`hold_out` is {str(given)!r}, but there is no record of a hold-out in that folder.")
        return record
    local = isinstance(models.model, (str, os.PathLike)) and Path(models.model).expanduser().is_dir()
    return HoldOutRecord.read(models.model) if local else None


def _find_tokenizer(models: AuditedModel, given: Any) -> Any:
    saved = models.tokenizer(TARGET)
    if given is None:
        if saved is None:
            raise ValueError(
                f"No tokenizer was saved with the model {models.name!r}. Give the one it was trained with "
                "(`tokenizer`)."
            )
        return saved
    if saved is not None and fingerprints.hash_tokenizer(given) != fingerprints.hash_tokenizer(saved):
        raise ValueError(
            f"The tokenizer that was given is another one than the model {models.name!r} was saved with (vocabulary, "
            "special tokens or chat template differ), so the audit would look at other tokens than training did. "
            "Leave it out."
        )
    return given


def _check_reference(models: AuditedModel, tokenizer: Any, rows: list[TokenRow]) -> None:
    """Raise `ValueError` if the reference calls the tokens of the examples by other numbers."""
    if REFERENCE not in models.passes or models.reference is None:
        return
    other = models.tokenizer(REFERENCE)
    if other is None:
        return
    used = np.unique(np.concatenate([row.input_ids for row in rows])).tolist()
    ours, theirs = (found.convert_ids_to_tokens(used) for found in (tokenizer, other))
    different = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
    if different:
        first = different[0]
        raise ValueError(
            f"The vocabulary of the reference {models.reference_name!r} differs from the model's: {len(different)} "
            f"of {len(used)} tokens of the examples are others (number {used[first]} is {ours[first]!r} for the model "
            f"and {theirs[first]!r} for the reference). Name the model that was fine-tuned."
        )
