"""Selections of SFT examples by how hard they are for a model: perplexity, EL2N, GraNd."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset

from .._text import did_you_mean, listing
from ..scoring.difficulty import DifficultyScoring
from ..scoring.difficulty_columns import MODEL, without_difficulty
from ..scoring.saved_models import check_dtype
from ..scoring.sft_data import SFTFormat
from .base import Assessment, Selector, check_choice
from .picking import highest, is_number, shares_of
from .work import Work

UNLABELLED, HARDEST = "no label token", "among the hardest"


@dataclass(frozen=True, kw_only=True)
class DifficultySelector(Selector):
    """What selectors by difficulty take.

    Args:
        model: folder or name of a language model, whole or a LoRA adapter, or a list of them, whose mean counts; None
            where the data has the scores as a column (`gradkit score`).
        keep: `"highest"` scores, `"lowest"`, or `"middle"` for those nearest to the median.
        drop_hardest: share of the rows with the very highest scores that is never taken, such as wrong labels.
        group_column: keep the same share of each group of this column.
        max_length: tokens of an example that count, as in `trl.SFTConfig`; None for all.
        dtype: of the weights.
        trust_remote_code: run code that comes with the model.
    """

    model: Any = None
    keep: str = "highest"
    drop_hardest: float = 0.0
    group_column: str | None = None
    max_length: int | None = 1024
    dtype: str = "auto"
    trust_remote_code: bool = False

    model_options: ClassVar = ("model",)

    def __post_init__(self):
        super().__post_init__()
        check_choice("keep", self.keep, ("highest", "lowest", "middle"))
        if not is_number(self.drop_hardest) or not 0 <= self.drop_hardest < 1:
            raise ValueError(f"`drop_hardest` must be at least 0 and below 1, but it is {self.drop_hardest!r}.")
        SFTFormat(max_length=self.max_length)
        check_dtype(self.dtype)

    def assess(self, dataset: Dataset, work: Work) -> Assessment:
        """Return the difficulty of each example, and the score that `keep` makes of it."""
        present = dataset.column_names
        if self.group_column is not None and self.group_column not in present:
            raise ValueError(
                f"`group_column` is {self.group_column!r}, but the data has no such column."
                f"{did_you_mean(self.group_column, present)} Its columns: {listing(present)}."
            )
        values, facts = difficulty(dataset, self.name, self, work)
        found = Assessment({self.name: values}, facts=facts)
        there = np.isfinite(values)
        if not there.all():
            found.ruled_out[UNLABELLED] = ~there
        if self.drop_hardest:
            order = np.argsort(-np.where(there, values, -np.inf), kind="stable")
            hardest = np.zeros(len(values), dtype=bool)
            hardest[order[: round(self.drop_hardest * there.sum())]] = True
            found.ruled_out[HARDEST] = hardest
        score = values.copy()  # NaN as well where there is no label token: those rows are ruled out
        if self.keep == "lowest":
            score = -score
        elif self.keep == "middle":
            score = -np.abs(score - np.median(values[there]))
        found.columns["score"] = score
        if self.group_column is not None:
            names = dataset.with_format(None)[self.group_column]
            found.further["groups"] = np.unique([str(name) for name in names], return_inverse=True)[1]
        return found

    def choose(self, found: Assessment, size: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the rows to keep, best first, over all or in each group. (K,) int64"""
        score, groups = found.columns["score"], found.further.get("groups")
        if groups is None:
            return super().choose(found, size)
        allowed = found.allowed if found.allowed is not None else np.ones(len(score), dtype=bool)
        order = highest(score, len(score), self.seed, allowed)
        quotas = shares_of(np.bincount(groups, weights=allowed).astype(int), size)
        kept = [order[groups[order] == group][:quota] for group, quota in enumerate(quotas)]
        inside = np.zeros(len(score), dtype=bool)
        inside[np.concatenate(kept)] = True
        return order[inside[order]], {}


@dataclass(frozen=True, kw_only=True)
class Perplexity(DifficultySelector):
    """Selects by perplexity, exp of the mean cross-entropy of the label tokens.

    The plain baseline of pruning for language models, and often the best. It says nothing of why an example is hard:
    noise is.
    """

    name: ClassVar[str] = "perplexity"


@dataclass(frozen=True, kw_only=True)
class EL2N(DifficultySelector):
    """Selects by EL2N, the mean over the label tokens of ||p - onehot(y)||, arXiv 2107.07075.

    The authors average several short runs, early in training: give their checkpoints as `model`.
    """

    name: ClassVar[str] = "el2n"


@dataclass(frozen=True, kw_only=True)
class GraNd(DifficultySelector):
    """Selects by GraNd, the norm of the gradient of an example's own loss, arXiv 2107.07075; exact.

    Args:
        parameters: whose gradient: `"trainable"`, or a regular expression found in parameters' names.
    """

    parameters: str = "trainable"

    name: ClassVar[str] = "grand"


def difficulty(dataset: Dataset, by: str, options: Any, work: Work) -> tuple[np.ndarray, dict[str, Any]]:
    """Return a score of each example, NaN without a label token, and facts for the report. (n,) float64

    Args:
        dataset: SFT data, as `trl.SFTTrainer` takes it.
        by: "loss", "perplexity", "el2n" or "grand".
        options: a selector with `model`, `max_length`, `dtype`, `trust_remote_code`, perhaps `parameters`.
        work: keeps the scores.

    Raises:
        ValueError: if there is neither a model nor a column of that name.
    """
    if options.model is None:
        if by not in dataset.column_names:
            raise ValueError(
                f"`model` is not set, and the data has no column {by!r}. Name a model that scores the examples, or "
                f"score them first (gradkit score --by {by}). Its columns: {listing(dataset.column_names)}."
            )
        values = [np.nan if value is None else float(value) for value in dataset.with_format(None)[by]]
        scored_by = dataset[MODEL][0] if MODEL in dataset.column_names else "a column of the data"
        return _checked(np.array(values, dtype=np.float64), by), {"scored_by": scored_by}
    with work.timed(by):
        found = DifficultyScoring(
            without_difficulty(dataset),
            options.model,
            (by,),
            layout=SFTFormat(max_length=options.max_length),
            parameters=getattr(options, "parameters", "trainable"),
            batch_size=work.batch_size,
            dtype=options.dtype,
            cache_folder=work.folder,
            model_init_kwargs={"trust_remote_code": options.trust_remote_code},
        ).run()
    return _checked(found.columns[by], by), {"scored_by": found.model}


def _checked(values: np.ndarray, by: str) -> np.ndarray:
    infinite = np.flatnonzero(np.isinf(values))
    if len(infinite):
        raise ValueError(f"{by!r} of rows {infinite[:10].tolist()} of the data is infinite. Look at these rows.")
    if np.isnan(values).all():
        raise ValueError(f"No row of the data has a score {by!r}. Check what was scored.")
    return values
