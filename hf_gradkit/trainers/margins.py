"""Where the reward margins of the training data come from, and the temperature that makes logits of them."""

import logging
from typing import Any

import torch
from datasets import Dataset

from .._text import did_you_mean, listing
from ..data.columns import column_names
from ..scoring import add_reward_margins, check_recorded_reward_model
from ..weighting.calibration import fit_temperature
from .preference_options import PreferenceOptions

logger = logging.getLogger(__name__)


def with_margins(dataset: Any, options: PreferenceOptions, model: Any, tokenizer: Any, batch_size: int) -> Any:
    """Return the data with reward margins: as given, or scored by the reward model.

    Args:
        dataset: the training data.
        options: name the column.
        model: the reward model, its name or folder, or None.
        tokenizer: of the reward model, or None for its own.
        batch_size: pairs in a batch that is scored.

    Raises:
        ValueError: if there are no margins and no model to make them, or they are another model's.
    """
    column, present = options.columns.margin, column_names(dataset)
    if column in present:
        if model is not None:
            check_recorded_reward_model(dataset, model, column=column)
        return dataset
    if model is None:
        raise ValueError(
            f"`weighting` is {options.name!r}, but the training data has no column {column!r} with reward "
            f"margins.{did_you_mean(column, present)} Its columns: {listing(present)}. Score the data first "
            "(gradkit score --by reward), name a reward model (`reward_model_name_or_path`), or name the column "
            "(`reward_margin_column`)."
        )
    if not isinstance(dataset, Dataset):
        raise ValueError(
            "Streamed data cannot be scored on the way. Score it first (gradkit score --by reward), or load it "
            "without streaming."
        )
    return add_reward_margins(dataset, model, tokenizer=tokenizer, column=column, batch_size=batch_size)


def margin_temperature(dataset: Any, options: PreferenceOptions) -> float:
    """Return what the margins are divided by: the fitted temperature, or 1 where they are taken as they are.

    Raises:
        ValueError: for streamed data, whose margins are not known beforehand, or if no temperature fits.
    """
    if not options.calibration.calibrate:
        return 1.0
    if not isinstance(dataset, Dataset):
        raise ValueError(
            "A temperature cannot be fitted to the margins of streamed data. Load the data without streaming, "
            "or calibrate the margins beforehand and set calibrate=False in `weighting_kwargs`."
        )
    margins = dataset.with_format(None)[options.columns.margin]
    temperature = fit_temperature(torch.tensor(list(margins), dtype=torch.float64))
    logger.info(f"The reward margins are divided by the fitted temperature {temperature:.4g}.")
    if temperature < 1:
        logger.warning(
            f"The temperature fitted to the reward margins is {temperature:.3g}, below 1, which makes them larger. A "
            "reward model is rarely too unsure of pairs that it has not seen: it has probably seen these. Score each "
            "pair with one that has not (gradkit reward --folds 3)."
        )
    return temperature
