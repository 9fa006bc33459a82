"""Canaries: short texts with a random secret, planted before training, and how far they stand out afterwards."""

import os
from typing import Any

import numpy as np
from datasets import Dataset

from .._text import listing
from ..scoring.sft_data import SFTFormat, tokenize_sft
from .exposure import exposure
from .models import AuditedModel
from .token_records import LOG_PROBS, score_tokens

TEXT, ALTERNATIVES = "text", "alternatives"


def check_canaries(canaries: Dataset) -> None:
    """Raise `ValueError` unless the data has canaries' columns and each canary an alternative other than itself."""
    for name in (TEXT, ALTERNATIVES):
        if name not in canaries.column_names:
            raise ValueError(
                f"Canaries have the columns {TEXT!r} and {ALTERNATIVES!r}, but the data has no {name!r}. Its columns: "
                f"{listing(canaries.column_names)}. `hf_gradkit.data.synthetic_secrets.canary_rows` makes some."
            )
    for i, row in enumerate(canaries.with_format(None)):
        if not row[ALTERNATIVES]:
            raise ValueError(f"Row {i} of the canaries has no alternatives, so there is nothing to rank it among.")
        if row[TEXT] in row[ALTERNATIVES]:
            raise ValueError(f"Row {i} of the canaries has its own text among its alternatives. Remove it there.")


def audit_canaries(
    models: AuditedModel,
    tokenizer: Any,
    canaries: Dataset,
    layout: SFTFormat,
    cache_folder: str | os.PathLike,
    batch_size: int,
) -> dict[str, Any]:
    """Return the exposure of each canary, under the model and, where there is one, under the reference. Bits

    Texts are compared by their summed token loss. Under a model that has not seen it, a canary's rank is uniform, and
    its exposure exceeds b bits with a chance of 2^-b.
    """
    check_canaries(canaries)
    rows = list(canaries.with_format(None))
    texts = [text for row in rows for text in (row[TEXT], *row[ALTERNATIVES])]
    column = layout.dataset_text_field
    tokens = tokenize_sft(Dataset.from_dict({column: texts}), tokenizer, layout)
    found = score_tokens(models, tokens, (LOG_PROBS,), cache_folder, batch_size)
    figures: dict[str, Any] = {
        "canaries": len(rows),
        "alternatives": min(len(row[ALTERNATIVES]) for row in rows),
        "largest": float(np.log2(min(len(row[ALTERNATIVES]) for row in rows) + 1)),
    }
    for which, columns in found.items():
        losses = np.array([-values.sum(dtype=np.float64) for values in columns[LOG_PROBS]])
        bits, start = [], 0
        for row in rows:
            end = start + 1 + len(row[ALTERNATIVES])
            bits.append(exposure(losses[start], losses[start + 1 : end]))
            start = end
        figures[which] = {"exposures": bits, "mean": float(np.mean(bits)), "median": float(np.median(bits))}
    return figures
