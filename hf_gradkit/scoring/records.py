"""What scored data says about the reward model that scored it."""

import os
import re
from typing import Any

import numpy as np
from accelerate.logging import get_logger
from datasets import Dataset

from . import fingerprints
from .folds import Folds
from .processes import on_main

logger = get_logger(__name__)

MARGIN, MODEL = "reward_margin", "reward_model"  # columns of scored data
CHOSEN, REJECTED = "reward_chosen", "reward_rejected"  # further ones
LIVE = "live:"  # before the hash of a model in memory, which cannot be compared with that of its files


def describe_model(model: Any, revision: str | None = None) -> str:
    """Return the name of a model and a short hash of its content, such as `"runs/reward@1f3a9c0d2b7e"`.

    The content is all that can change a score: weights, configuration, tokenizer, chat template, for an adapter what
    it is put on, for folds all their models. The hash of a model in memory, of parameters and configuration, is marked
    with `live:`.
    """
    if not isinstance(model, (str, os.PathLike)):
        content = on_main(lambda: fingerprints.hash_module(model))
        return f"{model_name(model) or type(model).__name__}@{LIVE}{content[: fingerprints.SHORT]}"
    name = str(model)
    return f"{name}@{on_main(lambda: _hash_saved(name, revision))[: fingerprints.SHORT]}"


def _hash_saved(name: str, revision: str | None) -> str:
    folds = Folds.read(name)
    if folds is None:
        return fingerprints.hash_folder(fingerprints.find_model(name, revision))
    models = [fingerprints.hash_folder(folds.folder(name, fold)) for fold in range(folds.folds)]
    return fingerprints.digest(folds.folds, folds.seed, models)


def model_name(model: Any) -> str:
    """Return what a model in memory was loaded from, or an empty string."""
    return getattr(model.config, "_name_or_path", "")


def hash_of(recorded: str) -> str:
    """Return the hash of a record, without the name."""
    return recorded.rpartition("@")[2]


def recorded_reward_model(dataset: Any) -> str | None:
    """Return what the data says about the reward model that scored it, or None if it says nothing.

    Raises:
        ValueError: if parts of the data were scored by different reward models.
    """
    if MODEL not in (dataset.column_names or ()):
        return None
    if isinstance(dataset, Dataset):
        found = dataset.with_format(None).unique(MODEL)
    else:
        found = [row[MODEL] for row in dataset.take(1)]
    ours = [value for value in found if isinstance(value, str) and re.search(rf"@({LIVE})?[0-9a-f]{{12}}$", value)]
    if len(ours) > 1 and len({hash_of(value) for value in ours}) > 1:
        raise ValueError(
            f"The data was scored by several reward models ({', '.join(map(repr, sorted(ours)))}), whose margins are "
            "on scales of their own. Score all of it with one."
        )
    return ours[0] if ours else None


def check_recorded_reward_model(
    dataset: Any, reward_model: Any, revision: str | None = None, column: str = MARGIN
) -> None:
    """Raise `ValueError` if the margins in a column are those of another reward model; the name alone may differ.

    Margins are those of the record where they are the difference of the rewards beside it. Of data without a record
    nothing is known, nor when one of the two was a model in memory and the other is on disk: that is warned of.
    """
    recorded = recorded_reward_model(dataset)
    if recorded is None:
        logger.warning(
            f"The data has margins in {column!r} and no record of what scored them. They are used as they are, and "
            "the reward model that was given is not."
        )
        return
    _check_difference(dataset, column, recorded)
    given = describe_model(reward_model, revision)
    if (LIVE in hash_of(recorded)) != (LIVE in hash_of(given)):
        logger.warning(
            f"The data was scored by {recorded!r}. Whether {given!r} is the same model cannot be told: one of them "
            "was given in memory, the other one as files."
        )
    elif hash_of(recorded) != hash_of(given):
        raise ValueError(
            f"The data was scored by {recorded!r}, but the reward model that was given is {given!r}, another one. "
            f"Leave the reward model out to use the scores of the data, or remove the columns {column!r} and "
            f"{MODEL!r} to score it again."
        )


def _check_difference(dataset: Any, column: str, recorded: str) -> None:
    if not isinstance(dataset, Dataset) or not {CHOSEN, REJECTED} <= set(dataset.column_names):
        return
    values = {name: np.asarray(dataset.with_format(None)[name], dtype=float) for name in (CHOSEN, REJECTED, column)}
    if not np.allclose(values[CHOSEN] - values[REJECTED], values[column], rtol=1e-4, atol=1e-6, equal_nan=True):
        raise ValueError(
            f"The margins in {column!r} are not the difference of {CHOSEN!r} and {REJECTED!r}, which {recorded!r} "
            f"scored: they are of another scoring, or were changed since. Name the column that belongs to it "
            "(`reward_margin_column`), or leave the reward model out to use the margins as they are."
        )
