"""Sampling in proportion to gradient norms, with the weights that keep training unbiased."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset

from ..scoring.saved_models import check_dtype
from ..scoring.sft_data import SFTFormat
from .base import Assessment, Selector, check_added
from .difficulty import UNLABELLED, difficulty
from .norms import draw, norm_probabilities, unbiased_weights
from .picking import is_number
from .work import Work

WEIGHT = "weight"


@dataclass(frozen=True, kw_only=True)
class PADA(Selector):
    """Draws SFT examples with replacement, those with long gradients more often; PA&DA, arXiv 2302.14772.

        p_i = t g_i / sum g + (1 - t) / N,     weight_i = 1 / (N p_i)

    The rows drawn get a column `weight`, with which the mean over them is, in expectation, that over all rows: train
    with `weight_column="weight"` and `normalize_weight_column=True`. The loss is a mean over tokens, and without the
    second it is divided by the tokens of the rows drawn, which are shorter or longer than all rows are. The authors'
    code has no such weights. They let t grow over training; here it is fixed, since the gradients are those of one
    model. g_i is that of the example's own mean loss.

    Args:
        model: folder or name of a language model, whole or a LoRA adapter, or a list of them; None where the data has
            the norms as a column `grand` (`gradkit score --by grand`).
        norm_share: t, from 0 (uniform) to below 1, so that no row is out of reach and no weight without bound.
        parameters: whose gradient: `"trainable"`, or a regular expression found in parameters' names.
        max_length: tokens of an example that count, as in `trl.SFTConfig`; None for all.
        dtype: of the weights.
        trust_remote_code: run code that comes with the model.
    """

    model: Any = None
    norm_share: float = 0.5
    parameters: str = "trainable"
    max_length: int | None = 1024
    dtype: str = "auto"
    trust_remote_code: bool = False

    name: ClassVar[str] = "pada"
    model_options: ClassVar = ("model",)

    def __post_init__(self):
        super().__post_init__()
        SFTFormat(max_length=self.max_length)
        check_dtype(self.dtype)
        if not is_number(self.norm_share) or not 0 <= self.norm_share < 1:
            raise ValueError(f"`norm_share` must be at least 0 and below 1, but it is {self.norm_share!r}.")

    def check(self, dataset: Dataset) -> None:
        """Raise `ValueError` for data that has weights already."""
        super().check(dataset)
        check_added(dataset, (WEIGHT,))

    def assess(self, dataset: Dataset, work: Work) -> Assessment:
        """Return the norm of each example's gradient, its probability, which is the score, and its weight."""
        norms, facts = difficulty(dataset, "grand", self, work)
        there = np.isfinite(norms)
        probabilities = np.zeros(len(norms))
        probabilities[there] = norm_probabilities(norms[there], self.norm_share)
        weights = np.full(len(norms), np.nan)  # a row that cannot be drawn has none
        weights[there] = unbiased_weights(probabilities[there])
        columns = {"grand": norms, "score": probabilities, WEIGHT: weights}
        return Assessment(columns, {UNLABELLED: ~there} if not there.all() else {}, facts)

    def choose(self, found: Assessment, size: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return rows drawn with replacement, (K,) int64, and how often each was drawn."""
        rows = draw(found.columns["score"], size, self.seed)
        return rows, {"draws": np.bincount(rows, minlength=len(found.columns["score"]))}

    def added(self, found: Assessment, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Return the weights of the rows drawn. (K,)"""
        return {WEIGHT: found.columns[WEIGHT][rows]}
