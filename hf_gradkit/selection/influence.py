"""Influence of training examples on target examples, from random projections of their gradients."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset

from ..data.loading import load_split
from ..gradients import GradientRecordError, Recorder
from ..scoring import fingerprints
from ..scoring.difficulty_scorers import TRAINABLE, recorded_norms
from ..scoring.language_models import check_rows, load_language_model
from ..scoring.processes import on_main
from ..scoring.saved_models import check_dtype, load_tokenizer
from ..scoring.sft_data import SFTFormat, tokenize_sft
from ..scoring.token_rows import TokenRow, TokenRows, hash_token_rows
from ..scoring.tokens import token_statistics
from .base import Assessment, Selector, check_choice, check_dataset
from .difficulty import UNLABELLED
from .embedders import find_models
from .summary import correlation, ranks
from .work import Work

COLUMNS = ("projection", "norm")


@dataclass(frozen=True, kw_only=True)
class GradCos(Selector):
    """Selects SFT examples whose gradients point where those of target examples point.

        TracIn(z)   = sum over checkpoints c of eta_c  mean over targets z' of <g_c(z), g_c(z')>     arXiv 2002.08484
        Grad-Cos(z) = the same with every gradient divided by its length

    g is the gradient of an example's own mean loss. In TracIn, examples with long gradients dominate everything
    (arXiv 2401.09031); Grad-Cos renormalises, and both are in the scores. The report has the rank correlation of both
    with the gradient's length and the number of tokens. Inner products are estimated from random projections, without
    bias; lengths are exact.

    Args:
        model: folder or name of a language model, whole or a LoRA adapter, or a list of checkpoints.
        target: SFT data that the model should get better at: a data set, a file or a name on the Hub.
        target_split: its split.
        measure: `"cosine"` or `"inner_product"`: which of the two is the score.
        learning_rates: eta of each checkpoint; 1 for all when None.
        projections: random probes of a gradient. The error of a cosine is about 1 / sqrt(projections); the report has
            it beside the spread of the scores.
        parameters: whose gradient: `"trainable"`, or a regular expression found in parameters' names.
        max_length: tokens of an example that count, as in `trl.SFTConfig`; None for all.
        dtype: of the weights.
        trust_remote_code: run code that comes with the model.
    """

    model: Any = None
    target: Any = None
    target_split: str = "train"
    measure: str = "cosine"
    learning_rates: list[float] | None = None
    projections: int = 512
    parameters: str = TRAINABLE
    max_length: int | None = 1024
    dtype: str = "auto"
    trust_remote_code: bool = False

    name: ClassVar[str] = "grad_cos"
    model_options: ClassVar = ("model",)

    def __post_init__(self):
        super().__post_init__()
        check_choice("measure", self.measure, ("cosine", "inner_product"))
        SFTFormat(max_length=self.max_length)
        check_dtype(self.dtype)
        models = self._models
        if not models or not all(isinstance(model, str) and model for model in models):
            raise ValueError(
                f"The selector 'grad_cos' needs a `model`, or a list of them, but it is {self.model!r}. Name folders "
                'or models of the Hub among its options: {"model": "..."}.'
            )
        if self.target is None:
            raise ValueError(
                "The selector 'grad_cos' needs a `target` among its options: SFT data that the model should get "
                "better at, as a file or a name on the Hub."
            )
        if self.learning_rates is not None and len(self.learning_rates) != len(models):
            raise ValueError(
                f"`learning_rates` has {len(self.learning_rates)} values for {len(models)} checkpoints. Give one each."
            )

    @property
    def _models(self) -> list[str]:
        return list(self.model) if isinstance(self.model, (list, tuple)) else [self.model]

    @property
    def _targets(self) -> Dataset:
        return self.target if isinstance(self.target, Dataset) else load_split(self.target, self.target_split)

    def check(self, dataset: Dataset) -> None:
        """Raise `ValueError` for data or targets that are no SFT data, and where there is no such model."""
        super().check(dataset)
        check_dataset(self._targets)
        for examples in (dataset, self._targets):
            SFTFormat(max_length=self.max_length).content_columns(examples)
        find_models(*self._models)

    def assess(self, dataset: Dataset, work: Work) -> Assessment:
        """Return both influences of each example, the length of its gradient and its number of label tokens."""
        targets = self._targets
        columns = {name: np.zeros(len(dataset)) for name in ("grad_cos", "tracin", "gradient_norm", "label_tokens")}
        variance = np.zeros(len(dataset))
        rates = self.learning_rates or [1.0] * len(self._models)
        for model, rate in zip(self._models, rates, strict=True):
            with work.timed("gradients"):
                rows, found = self._gradients(model, dataset, work)
                of_targets, goals = self._gradients(model, targets, work)
            if not rows or not of_targets:
                raise ValueError(
                    f"No {'target ' if rows else ''}example has a token to learn from within `max_length` "
                    f"({self.max_length}), so there are no gradients to compare. Raise it, or check the completions."
                )
            there = rows.numbers
            cosines = products_of_directions(found, goals)  # (m, k)
            columns["grad_cos"][there] += rate * cosines.sum(1)
            columns["tracin"][there] += rate * (found["projection"] @ goals["projection"].mean(0))
            columns["gradient_norm"][there] += found["norm"] / len(rates)
            columns["label_tokens"][there] = rows.label_tokens
            variance[there] += rate**2 * self.projections * cosines.var(1)
        labelled = columns["label_tokens"] > 0
        for name in ("grad_cos", "tracin", "gradient_norm"):
            columns[name][~labelled] = np.nan
        columns["score"] = columns["grad_cos" if self.measure == "cosine" else "tracin"].copy()
        facts = {
            "correlation": {name: _correlations(name, columns, labelled) for name in ("grad_cos", "tracin")},
            "standard_error": float(np.sqrt(variance[labelled].mean())),
            "spread": float(columns["grad_cos"][labelled].std()),
            "targets": len(of_targets),
        }
        ruled_out = {} if labelled.all() else {UNLABELLED: ~labelled}
        return Assessment(columns, ruled_out, {"influence": facts})

    def _gradients(self, model: str, dataset: Dataset, work: Work) -> tuple[TokenRows, dict[str, np.ndarray]]:
        """Return the examples that have label tokens, and their gradients' projections, (m, k), and lengths, (m,)."""
        tokenizer = load_tokenizer(model, trust_remote_code=self.trust_remote_code)
        rows = tokenize_sft(dataset, tokenizer, SFTFormat(max_length=self.max_length))
        rows = rows.labelled()
        content = on_main(lambda: fingerprints.hash_folder(fingerprints.find_model(model)))
        way = (self.dtype, self.parameters, self.projections, self.seed)
        if not len(rows):
            return rows, {}

        @contextmanager
        def make() -> Iterator[tuple]:
            live = load_language_model(model, self.dtype, True, trust_remote_code=self.trust_remote_code)
            live.to(work.device)
            check_rows(rows, live)
            recording = recorded_norms(live, self.parameters, True, self.projections, self.seed)
            with token_statistics(live) as statistics, recording as recorder:
                yield rows, _ProjectionScorer(statistics, recorder)

        identity = (content, hash_token_rows(rows), *way)
        return rows, work.score("gradients", identity, COLUMNS, len(rows), make, rows=rows.numbers, unit="example")


def products_of_directions(found: dict[str, np.ndarray], goals: dict[str, np.ndarray]) -> np.ndarray:
    """Return each probe's part of the mean cosine with the targets' gradients; their sum estimates it. (m, k)

    Each part, times k, is an unbiased estimate by itself, so that their spread says how good the sum is.
    """
    lengths, of_goals = (np.where(part["norm"] > 0, part["norm"], 1.0)[:, None] for part in (found, goals))
    return found["projection"].astype(np.float64) / lengths * (goals["projection"] / of_goals).mean(0)


def _correlations(name: str, columns: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, float | None]:
    """Return the rank correlations of an influence with what must not decide it."""
    return {
        other: correlation(ranks(columns[name][rows]), ranks(columns[other][rows]))
        for other in ("gradient_norm", "label_tokens")
    }


class _ProjectionScorer:
    """Gives projection and length of each example's gradient, by one backward pass a batch."""

    columns = COLUMNS

    def __init__(self, statistics: Any, recorder: Recorder):
        self._statistics, self._recorder = statistics, recorder

    def length(self, item: TokenRow) -> int:
        return len(item)

    def score(self, items: list[TokenRow]) -> dict[str, np.ndarray]:
        with torch.enable_grad():
            losses = self._statistics(items).losses()
            try:
                # The sum of the examples' own means: each gradient is free of the rest of the batch.
                losses.sum().backward()
                found = {"projection": self._recorder.projections(), "norm": self._recorder.norms()}
            except GradientRecordError as error:
                rows = [item.row for item in items]
                raise ValueError(f"The rows {rows} of the data were scored together: {error}") from error
        return {name: values.float().cpu().numpy() for name, values in found.items()}
