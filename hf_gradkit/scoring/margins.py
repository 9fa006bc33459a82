"""Reward margins as columns of a preference data set: scored once, kept under a hash of model and data."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.logging import get_logger
from datasets import Dataset

from .._compat import whole_models
from . import fingerprints
from .engine import load_scores, score_rows
from .folds import Folds
from .pairs import check_pair_columns, check_pairs, content_columns, identical_message
from .processes import on_main, world
from .records import CHOSEN, MARGIN, MODEL, REJECTED, describe_model, hash_of, model_name, recorded_reward_model
from .rewards import (
    RewardScorer,
    check_labels,
    load_reward_model,
    pad_token,
    tokenize_pairs,
)
from .saved_models import check_dtype, is_saved, position_limit, score_cache, tokenizer_of

logger = get_logger(__name__)


@dataclass(frozen=True)
class Rewards:
    """The rewards of pairs.

    Attributes:
        chosen: of the chosen completions. (n,) float64
        rejected: of the rejected ones. (n,) float64
        model: name and short hash of the reward model.
        key: says which model, data and settings these are.
        scored: how many sequences this call scored, on all processes; 0 when all were kept from before.
    """

    chosen: np.ndarray
    rejected: np.ndarray
    model: str
    key: str
    scored: int


def add_reward_margins(
    dataset: Dataset,
    reward_model: Any,
    *,
    tokenizer: Any = None,
    column: str = MARGIN,
    batch_size: int = 8,
    max_length: int | None = None,
    dtype: Any = "auto",
    cache_folder: str | os.PathLike | None = None,
    device: Any = None,
    model_init_kwargs: dict[str, Any] | None = None,
) -> Dataset:
    """Score the pairs of a data set with a reward model and return it with the columns

    - `reward_chosen`, `reward_rejected`: the rewards,
    - `reward_margin` (or `column`): chosen minus rejected, raw: neither centred nor clipped nor calibrated,
    - `reward_model`: name and short hash of the model, such as `"runs/reward@1f3a9c0d2b7e"`.

    All processes of a launch share the work, and all of them get the same. What was scored is kept: the same pairs
    and model are not scored twice, nor is what was finished before a kill. Columns of these names from an earlier
    scoring are replaced.

    Args:
        dataset: pairs with `chosen` and `rejected`, plain text or conversations, with or without `prompt`.
        reward_model: a folder, a model of the Hub, a folder of folds that `gradkit reward --folds` wrote (each pair is
            then scored by the model that did not see it), or a model in memory: a sequence classifier of one label.
        tokenizer: the reward model's; by default the one that was saved with it.
        column: name of the margins.
        batch_size: pairs in a batch of one process: twice as many sequences, as in `trl.RewardTrainer`.
        max_length: tokens that the model reads; longer sequences are cut at the left. By default the model's limit.
        dtype: of the weights of a model that is loaded; `"auto"` as they were saved.
        cache_folder: where scores are kept; by default beside the cache of `datasets`.
        device: where the model scores; by default where it is, or the process's own device.
        model_init_kwargs: further arguments of `from_pretrained`, such as `revision`.

    Raises:
        ValueError: if columns or completions are missing, the model is not a reward model, conversations meet a
            tokenizer without chat template, or columns of these names are not from an earlier scoring.
        NonFiniteScoreError: for a reward that is not finite, naming rows.
    """
    dataset = without_margins(dataset, column)
    scoring = PairScoring(
        dataset=dataset,
        reward_model=reward_model,
        tokenizer=tokenizer,
        batch_size=batch_size,
        max_length=max_length,
        dtype=dtype,
        cache_folder=cache_folder,
        device=device,
        model_init_kwargs=model_init_kwargs,
    )
    return with_margins(dataset, scoring.run(), column)


def without_margins(dataset: Dataset, column: str = MARGIN) -> Dataset:
    """Return the data without the columns of an earlier scoring.

    Raises:
        ValueError: if the data is streamed, or columns of these names are of another origin.
    """
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"The data is a {type(dataset).__name__}, and scores are columns of a `datasets.Dataset`. Load it without "
            "streaming (dataset_streaming false)."
        )
    if column in (CHOSEN, REJECTED, MODEL):
        raise ValueError(f"`column` is {column!r}, the name of another column of the scores. Keep 'reward_margin'.")
    if column == "margin":
        raise ValueError(
            "`column` is 'margin', a name that TRL's RewardTrainer takes for a margin in its loss: a reward model "
            "trained again on the scored data would be another one. Keep 'reward_margin'."
        )
    taken = [name for name in (CHOSEN, REJECTED, column, MODEL) if name in dataset.column_names]
    if MODEL in taken and MARGIN in dataset.column_names and MARGIN not in taken:
        taken.append(MARGIN)  # margins of the earlier scoring must not be taken for those of this one
    if taken and recorded_reward_model(dataset) is None:
        raise ValueError(
            f"The data has columns {taken} already, which no scoring of hf_gradkit wrote. Rename or remove them."
        )
    return dataset.remove_columns(taken)


def with_margins(dataset: Dataset, rewards: Rewards, column: str = MARGIN) -> Dataset:
    """Return the data with rewards, margins and the model's name as columns."""
    margins = rewards.chosen - rewards.rejected
    columns = {CHOSEN: rewards.chosen, REJECTED: rewards.rejected, column: margins}
    kind = dataset.format["type"]
    dataset = dataset.with_format(None)
    for name, values in columns.items():
        dataset = dataset.add_column(name, values)
    dataset = dataset.add_column(MODEL, [rewards.model] * len(dataset))
    return dataset if kind is None else dataset.with_format(kind)


@dataclass(frozen=True)
class PairScoring:
    """Pairs and the reward model that is to score them; see `add_reward_margins` for the arguments."""

    dataset: Dataset
    reward_model: Any
    tokenizer: Any = None
    batch_size: int = 8
    max_length: int | None = None
    dtype: Any = "auto"
    cache_folder: str | os.PathLike | None = None
    device: Any = None
    model_init_kwargs: dict[str, Any] | None = None

    def __post_init__(self):
        check_pair_columns(self.dataset)
        if not len(self.dataset):
            raise ValueError("The data has no rows, so there is nothing to score. Check the file and the split.")
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(
                f"`max_length` must be at least 1, but it is {self.max_length!r}. Leave it out to take the model's "
                "limit."
            )
        check_dtype(self.dtype)

    @cached_property
    def options(self) -> dict[str, Any]:
        """Further arguments of `from_pretrained`."""
        return dict(self.model_init_kwargs or {})

    @cached_property
    def model(self) -> str:
        """Name and short hash of the reward model."""
        return describe_model(self.reward_model, self.options.get("revision"))

    @cached_property
    def key(self) -> str:
        """Says which model, data and settings these are."""
        tokenizer = self.tokenizer
        if tokenizer is None and not is_saved(self.reward_model):
            tokenizer = self._tokenizer_of(self.reward_model)  # of a saved model, it is among the files
        tokenizer = None if tokenizer is None else fingerprints.hash_tokenizer(tokenizer)
        rows = on_main(lambda: fingerprints.hash_rows(self.dataset, content_columns(self.dataset)))
        settings = (tokenizer, self.max_length, str(self.dtype))
        return fingerprints.digest("rewards", 1, hash_of(self.model), rows, *settings)

    def run(self) -> Rewards:
        """Return the rewards of all pairs: scored now, by all processes, or before."""
        cache = score_cache(self.cache_folder)
        rewards, scored = np.empty((len(self.dataset), 2)), 0
        for reward_model, rows, key in self._parts():
            rewards[rows], new = self._score(reward_model, rows, cache / key, key)
            scored += new
        return Rewards(rewards[:, 0].copy(), rewards[:, 1].copy(), self.model, self.key, scored)

    def _parts(self) -> list[tuple[Any, np.ndarray, str]]:
        """Return each model, with the rows that it scores and a key: one for all, or one a fold."""
        model = self.reward_model
        folds = Folds.read(model) if is_saved(model) else None
        if folds is None:
            return [(model, np.arange(len(self.dataset)), self.key)]
        assigned, top = folds.of_rows(self.dataset), Path(model).expanduser()
        parts = [(folds.folder(top, k), np.flatnonzero(assigned == k), f"{self.key}-{k}") for k in range(folds.folds)]
        return [part for part in parts if len(part[1])]

    def _score(self, model: Any, rows: np.ndarray, folder: Path, key: str) -> tuple[np.ndarray, int]:
        """Return the rewards of chosen and rejected, (n, 2), and how many sequences were scored for it."""
        kept = load_scores(folder, key, RewardScorer.columns, 2 * len(rows))
        if kept is not None:
            return kept["reward"].reshape(-1, 2), 0
        _ = self.identical  # looks at the pairs, once
        loaded = is_saved(model)
        tokenizer = self.tokenizer if self.tokenizer is not None else self._tokenizer_of(model)
        if loaded:
            with whole_models():
                model = load_reward_model(str(model), self.dtype, **self.options)
        _check_whole(model)
        check_labels(model.config.num_labels, model_name(model))
        part = self.dataset if len(rows) == len(self.dataset) else self.dataset.select(rows)
        sequences = tokenize_pairs(part, tokenizer, self.max_length or position_limit(model))
        _check_vocabulary(sequences, model)
        if self.device is not None or (loaded and "device_map" not in self.options):
            model.to(self.device or world().device)
        training = model.training
        scorer = RewardScorer(model.eval(), pad_token(model, tokenizer, model_name(model)))
        try:
            scores = score_rows(
                sequences, scorer, folder, key, 2 * self.batch_size, rows=np.repeat(rows, 2), unit="sequence"
            )
        finally:
            model.train(training)
        if loaded and torch.cuda.is_available():
            del model, scorer
            torch.cuda.empty_cache()
        return scores.columns["reward"].reshape(-1, 2), scores.scored

    @cached_property
    def identical(self) -> int:
        """How many pairs have the same completion twice; warns of them, and refuses empty completions."""
        number = check_pairs(self.dataset)
        if number:
            logger.warning(identical_message(number, len(self.dataset), "their margin is zero, up to rounding"))
        return number

    def _tokenizer_of(self, model: Any) -> Any:
        return tokenizer_of(model, self.options, "reward model")


def _check_whole(model: Any) -> None:
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise ValueError(
            "The reward model was loaded in parts, as ZeRO-3 loads every model once there are training arguments, and "
            "only whole ones score. Give its name or folder instead of the model (`reward_model_name_or_path`)."
        )


def _check_vocabulary(sequences: Sequence[np.ndarray], model: Any) -> None:
    largest = max((int(ids.max()) for ids in sequences if len(ids)), default=-1)
    known = model.get_input_embeddings().num_embeddings
    if largest >= known:
        raise ValueError(
            f"The tokenizer gives token {largest}, and the reward model knows {known}: they do not belong together. "
            "Give the reward model's own tokenizer (`reward_processing_class`, or `tokenizer`)."
        )
