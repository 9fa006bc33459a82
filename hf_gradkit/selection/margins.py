"""Margins: by how much the chosen answer of a pair is better than the rejected one, as something judges it."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from datasets import Dataset

from .._text import check_whole_number, did_you_mean, listing
from ..scoring import fingerprints
from ..scoring.margins import PairScoring
from ..scoring.pairs import check_pairs, content_columns
from ..scoring.processes import on_main
from ..scoring.records import CHOSEN, MARGIN, REJECTED
from ..scoring.saved_models import check_dtype
from ..scoring.sft_data import SFTFormat, tokenize_sft
from .components import Component
from .embedders import check_model, find_models
from .language import answers, log_probs
from .work import Work

# Where margins are found when no column is named, in this order: of hf_gradkit, and of public preference data.
KNOWN_COLUMNS = ((MARGIN,), (CHOSEN, REJECTED), ("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"))


@dataclass(frozen=True)
class ColumnMargin(Component):
    """Margins that the data has: in one column, or as the difference of two.

    Args:
        chosen: column with the score of the chosen answer, or with the margin if `rejected` is left out; when both are
            left out, `reward_margin`, or the difference of `reward_chosen` and `reward_rejected`, `score_chosen` and
            `score_rejected`, or `chosen_score` and `rejected_score`, the first that is there.
        rejected: column with the score of the rejected answer.
    """

    chosen: str | None = None
    rejected: str | None = None

    def check(self, dataset: Dataset) -> None:
        """Raise `ValueError` for a missing column, or one that does not hold finite numbers."""
        for name in self._columns(dataset):
            column_values(dataset, name, "margin")

    def of_dataset(self, dataset: Dataset, work: Work) -> np.ndarray:
        """Return the margin of each pair. (n,) float64

        Raises:
            ValueError: if a column is missing, naming those there are, or holds something else than finite numbers.
        """
        columns = [column_values(dataset, name, "margin") for name in self._columns(dataset)]
        return columns[0] if len(columns) == 1 else columns[0] - columns[1]

    def _columns(self, dataset: Dataset) -> tuple[str, ...]:
        if self.chosen is not None:
            return (self.chosen,) if self.rejected is None else (self.chosen, self.rejected)
        for names in KNOWN_COLUMNS:
            if set(names) <= set(dataset.column_names):
                return names
        raise ValueError(
            f"`margin` is 'columns', but the data has no column with margins: neither {MARGIN!r} nor 'score_chosen' "
            f"and 'score_rejected'. Its columns: {listing(dataset.column_names)}. Score the pairs first "
            "(gradkit score --by reward), or set `margin` of the selector to other columns, "
            '{"by": "columns", "chosen": ..., "rejected": ...}, or to a reward model, '
            '{"by": "reward_model", "model": ...}.'
        )


@dataclass(frozen=True)
class RewardModelMargin(Component):
    """Margins of a reward model, r(x, y_w) - r(x, y_l), with its own chat template; see `add_reward_margins`.

    Args:
        model: folder or name of a sequence classifier of one label, or a folder of folds (`gradkit reward --folds`),
            which scores each pair by the model that did not see it.
        max_length: tokens that the model reads; longer sequences are cut at the left. By default the model's limit.
        dtype: of the weights.
        trust_remote_code: run code that comes with the model.
    """

    model: str | None = None
    max_length: int | None = None
    dtype: str = "auto"
    trust_remote_code: bool = False

    model_options: ClassVar = ("model",)

    def __post_init__(self):
        check_model(self.model, "margin", "reward_model")
        check_dtype(self.dtype)
        if self.max_length is not None:
            check_whole_number("max_length", self.max_length, 1)

    def check(self, dataset: Dataset) -> None:
        """Raise `ValueError` where there is no such model."""
        find_models(self.model)

    def of_dataset(self, dataset: Dataset, work: Work) -> np.ndarray:
        """Return the margin of each pair. (n,) float64"""
        rewards = PairScoring(
            dataset,
            self.model,
            batch_size=work.batch_size,
            max_length=self.max_length,
            dtype=self.dtype,
            cache_folder=work.folder,
            model_init_kwargs={"trust_remote_code": self.trust_remote_code},
        ).run()
        return rewards.chosen - rewards.rejected


@dataclass(frozen=True)
class ImplicitMargin(Component):
    """DPO's implicit margin: how much more a policy prefers the chosen answer than its reference does, in nats.

        m = (log p(y_w | x) - log p_ref(y_w | x)) - (log p(y_l | x) - log p_ref(y_l | x))

    arXiv 2305.18290 multiplies it by beta, which changes no selection.

    Args:
        model: folder or name of a policy that was trained with DPO, whole or a LoRA adapter.
        reference: of the model that it started from.
        max_length: tokens that are kept of prompt and answer, from the start.
        dtype: of the weights.
        trust_remote_code: run code that comes with the models.
    """

    model: str | None = None
    reference: str | None = None
    max_length: int | None = 1024
    dtype: str = "auto"
    trust_remote_code: bool = False

    model_options: ClassVar = ("model", "reference")

    def __post_init__(self):
        check_model(self.model, "margin", "implicit")
        if not self.reference:
            raise ValueError(
                "`margin` is 'implicit', which compares a policy with its reference: set `reference` to the model "
                "that the policy was trained from."
            )
        check_dtype(self.dtype)
        SFTFormat(max_length=self.max_length)

    def check(self, dataset: Dataset) -> None:
        """Raise `ValueError` where there is no such model."""
        find_models(self.model, self.reference)

    def of_dataset(self, dataset: Dataset, work: Work) -> np.ndarray:
        """Return the margin of each pair. (n,) float64"""
        check_pairs(dataset)
        content = on_main(lambda: fingerprints.hash_rows(dataset, content_columns(dataset)))
        policy, reference = (self._log_probs(model, dataset, content, work) for model in (self.model, self.reference))
        difference = policy - reference  # (n, 2)
        return difference[:, 0] - difference[:, 1]

    def _log_probs(self, model: str, dataset: Dataset, content: str, work: Work) -> np.ndarray:
        """Return the log-probability of the chosen and of the rejected answer. (n, 2)"""
        layout = SFTFormat(max_length=self.max_length)
        sums, tokens = log_probs(
            "answers",
            model,
            lambda tokenizer: tokenize_sft(dataset, tokenizer, layout, answers),
            np.repeat(np.arange(len(dataset)), 2),
            (content, self.max_length),
            work,
            self.dtype,
            self.trust_remote_code,
        )
        cut = np.flatnonzero((tokens.reshape(-1, 2) == 0).any(1))
        if len(cut):
            raise ValueError(
                f"`max_length` ({self.max_length}) leaves nothing of an answer in rows {cut[:10].tolist()} of the "
                "data, whose prompts are longer. Raise it, or leave these rows out."
            )
        return sums.reshape(-1, 2)


def column_values(dataset: Dataset, name: str, role: str) -> np.ndarray:
    """Return a column of numbers. (n,) float64

    Raises:
        ValueError: if it is missing, naming those there are, or holds something else than finite numbers, naming rows.
    """
    present = dataset.column_names
    if name not in present:
        raise ValueError(
            f"`{role}` reads the column {name!r}, but the data has no such column.{did_you_mean(name, present)} "
            f"Its columns: {listing(present)}."
        )
    values = list(dataset.with_format(None)[name])
    numbers = [isinstance(value, (int, float)) and bool(np.isfinite(value)) for value in values]
    bad = [row for row, fine in enumerate(numbers) if not fine]
    if bad:
        raise ValueError(
            f"`{role}` reads the column {name!r}, which is not a finite number in rows {bad[:10]}, such as "
            f"{values[bad[0]]!r}. Correct these rows, or leave them out."
        )
    return np.array(values, dtype=np.float64)


MARGINS: dict[str, type] = {
    "columns": ColumnMargin,
    "reward_model": RewardModelMargin,
    "implicit": ImplicitMargin,
}
