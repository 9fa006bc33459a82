"""Quality of prompts: how usual they are to a language model, what a text classifier says, or a column."""

import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset
from transformers import pipeline

from .._text import check_whole_number, listing
from ..scoring import fingerprints
from ..scoring.processes import on_main
from ..scoring.saved_models import check_dtype, position_limit
from .components import Component
from .embedders import check_model, find_models, pad_of
from .language import log_probs, text_rows
from .margins import column_values
from .work import Work


@dataclass(frozen=True)
class ColumnQuality(Component):
    """A column of the data.

    Args:
        column: its name.
    """

    column: str = "quality"

    def check(self, dataset: Dataset) -> None:
        """Raise `ValueError` for a missing column, or one that does not hold finite numbers."""
        column_values(dataset, self.column, "quality")

    def of_dataset(self, dataset: Dataset, work: Work) -> np.ndarray:
        """Return the column's values. (n,) float64"""
        return column_values(dataset, self.column, "quality")


@dataclass(frozen=True)
class PerplexityBand(Component):
    """How far a prompt's perplexity is outside of a band: 0 within, minus the distance in nats outside.

    Two-sided: a very high perplexity is junk, a very low one boilerplate.

    Args:
        model: folder or name of a small language model.
        low, high: bounds of the band, as perplexities of a token; by default the 10 % and the 90 % quantile of the
            prompts of the data.
        max_length: tokens that are read of a prompt.
        dtype: of the weights.
        trust_remote_code: run code that comes with the model.
    """

    model: str | None = None
    low: float | None = None
    high: float | None = None
    max_length: int = 512
    dtype: str = "auto"
    trust_remote_code: bool = False

    model_options: ClassVar = ("model",)

    def __post_init__(self):
        check_model(self.model, "quality", "perplexity")
        check_dtype(self.dtype)
        check_whole_number("max_length", self.max_length, 2)  # the first token is the start
        for name in ("low", "high"):
            bound = getattr(self, name)
            if bound is not None and not bound >= 1:
                raise ValueError(f"`{name}` is a perplexity, so at least 1, but it is {bound!r}.")
        if None not in (self.low, self.high) and self.low > self.high:
            raise ValueError(f"`low` ({self.low}) is above `high` ({self.high}): no perplexity would be in the band.")

    def check(self, dataset: Dataset) -> None:
        """Raise `ValueError` where there is no such model."""
        find_models(self.model)

    def of_dataset(self, dataset: Dataset, work: Work) -> np.ndarray:
        """Return the value of each row's prompt. (n,) float64, at most 0"""
        prompts = work.prompts(dataset)
        sums, tokens = log_probs(
            "prompt_perplexity",
            self.model,
            lambda tokenizer: text_rows(prompts.texts, tokenizer, self.max_length, work.in_data(prompts.rows)),
            prompts.rows,
            (self.max_length, prompts.fingerprint),
            work,
            self.dtype,
            self.trust_remote_code,
        )
        losses = -sums / np.maximum(tokens, 1)  # nats a token
        low = math.log(self.low) if self.low is not None else np.quantile(losses, 0.1)
        high = math.log(self.high) if self.high is not None else np.quantile(losses, 0.9)
        return -np.maximum(0.0, np.maximum(low - losses, losses - high))[prompts.of_row]


@dataclass(frozen=True)
class TextClassifier(Component):
    """What a text classifier says of the prompt, such as HuggingFaceFW/fineweb-edu-classifier.

    A classifier of one label gives its output as it is; of one with several, the probability of `label` counts.

    Args:
        model: folder or name of a sequence classifier with its tokenizer.
        label: the label that is good; needed where there are several.
        max_length: tokens that are read; the rest is cut off. At most the model's limit counts.
        trust_remote_code: run code that comes with the model.
    """

    model: str | None = None
    label: str | None = None
    max_length: int = 512
    trust_remote_code: bool = False

    model_options: ClassVar = ("model",)

    def __post_init__(self):
        check_model(self.model, "quality", "classifier")
        check_whole_number("max_length", self.max_length, 1)

    def check(self, dataset: Dataset) -> None:
        """Raise `ValueError` where there is no such model."""
        find_models(self.model)

    def of_dataset(self, dataset: Dataset, work: Work) -> np.ndarray:
        """Return the classifier's value of each row's prompt. (n,) float64"""
        prompts = work.prompts(dataset)
        folder = fingerprints.find_model(self.model)
        content = on_main(lambda: fingerprints.hash_folder(folder))

        @contextmanager
        def make():
            classify = pipeline(
                "text-classification",
                model=str(folder),
                tokenizer=str(folder),
                device=work.device,
                trust_remote_code=self.trust_remote_code,
            )
            yield [text or " " for text in prompts.texts], _ClassifierScorer(classify, self)

        identity = (content, self.label, self.max_length, prompts.fingerprint)
        found = work.score("classifier", identity, ("quality",), len(prompts), make, rows=prompts.rows, unit="prompt")
        return found["quality"][prompts.of_row]


class _ClassifierScorer:
    columns = ("quality",)

    def __init__(self, classify: Any, options: TextClassifier):
        config = classify.model.config
        labels = list(config.id2label.values())
        if config.num_labels > 1 and options.label not in labels:
            raise ValueError(
                f"`quality` is the classifier {options.model!r}, whose labels are {listing(labels)}, and `label` is "
                f"{options.label!r}. Set `label` to the one that means good."
            )
        self.classify = classify
        _give_padding(classify)
        limits = (options.max_length, position_limit(classify.model), classify.tokenizer.model_max_length)
        self.label = options.label if config.num_labels > 1 else labels[0]
        self.options = {
            "top_k": None,
            "function_to_apply": "softmax" if config.num_labels > 1 else "none",
            "truncation": True,
            "max_length": min(limit for limit in limits if limit is not None),
        }

    def length(self, item: str) -> int:
        return len(item)

    def score(self, items: list[str]) -> dict[str, np.ndarray]:
        found = self.classify(items, batch_size=len(items), **self.options)
        values = [next(one["score"] for one in row if one["label"] == self.label) for row in found]
        return {"quality": np.array(values, dtype=np.float64)}


def _give_padding(classify: Any) -> None:
    """Let a pipeline fill up batches where model or tokenizer has no padding token: what fills them is masked."""
    tokenizer, config = classify.tokenizer, classify.model.config.get_text_config()
    if tokenizer.pad_token_id is None:
        token = pad_of(tokenizer) if config.pad_token_id is None else config.pad_token_id
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(token)
    if config.pad_token_id is None:  # a causal model reads the last token that is another one
        config.pad_token_id = tokenizer.pad_token_id


QUALITIES: dict[str, type] = {
    "perplexity": PerplexityBand,
    "classifier": TextClassifier,
    "column": ColumnQuality,
}
