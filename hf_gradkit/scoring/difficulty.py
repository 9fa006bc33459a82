"""How hard each SFT example is for a model: loss, perplexity, EL2N and GraNd, over one or several checkpoints."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.logging import get_logger
from accelerate.utils.memory import clear_device_cache
from datasets import Dataset

from .._text import listing
from ..data.example_ids import example_ids
from . import fingerprints
from .difficulty_columns import Difficulty, check_scores, earlier_ids, with_difficulty, without_difficulty
from .difficulty_scorers import OUTPUTS, TRAINABLE, ForwardScorer, GradientScorer, chosen_names, recorded_norms
from .engine import Scores, load_scores, score_rows
from .language_models import check_rows, ready_language_model
from .processes import on_main
from .records import describe_model, hash_of
from .saved_models import check_dtype, is_saved, score_cache, tokenizer_of
from .sft_data import SFTFormat, tokenize_sft
from .token_rows import TokenRows, hash_token_rows
from .tokens import token_statistics
from .work import read_json, write_json

logger = get_logger(__name__)

COVERAGE = "coverage.json"  # beside kept scores: of how many parameters GraNd is the norm


def add_difficulty(
    dataset: Dataset,
    models: Any,
    by: str | Sequence[str] = "el2n",
    *,
    tokenizer: Any = None,
    layout: SFTFormat | None = None,
    example_id_column: str | None = None,
    parameters: str = TRAINABLE,
    exact: bool = True,
    batch_size: int = 8,
    dtype: Any = "auto",
    cache_folder: str | os.PathLike | None = None,
    device: Any = None,
    model_init_kwargs: dict[str, Any] | None = None,
) -> Dataset:
    """Score SFT examples with a causal language model and return the data with the scores as columns

    - `loss`: mean cross-entropy over the label tokens, in nats;
    - `perplexity`: exp(loss);
    - `el2n`: mean over the label tokens of ||p - onehot(label)||, "Deep Learning on a Data Diet", arXiv 2107.07075;
    - `grand`: the norm of the gradient of the example's own loss (the same paper), exactly;
    - `token_accuracy`: share of the label tokens that are the model's first choice; 1 where greedy decoding, led along
      the answer, would write it;
    - `label_tokens`: how many there are; `difficulty_model`: name and short hash of what scored;
    - `example_id`, a hash of the example's content, unless the data has a column of ids.

    Tokens and labels are those of training with `trl.SFTTrainer`, one row an example. All but GraNd need one forward
    pass together, with it one forward and one backward pass, for a batch at a time. With several models, such as
    checkpoints of several seeds early in training, `el2n_0`, `el2n_1`, ... are theirs and `el2n` is the mean
    (`perplexity` is exp of the mean loss). An example without a label token has empty scores (None), and a warning
    counts them. Columns of an earlier scoring are replaced.

    All processes of a launch share the work, and all of them get the same. What was scored is kept: the same tokens
    are not scored by the same model twice, nor is what was finished before a kill.

    Args:
        dataset: as `trl.SFTTrainer` takes it: prompts and completions, conversations, plain text, or `input_ids`.
        models: folder, name on the Hub or model in memory; or a list. A folder may hold a LoRA adapter.
        by: one score or several: "loss", "perplexity", "el2n", "grand", "token_accuracy".
        tokenizer: the models'; by default the one that was saved with the first.
        layout: how tokens and labels are made; TRL's defaults when None.
        example_id_column: column with ids of the examples.
        parameters: of which GraNd takes the gradient: "trainable" for all that require one, or a regular expression
            found in their names.
        exact: refuse GraNd where a parameter's gradient cannot be recorded; False warns, and leaves it out.
        batch_size: examples in a batch of one process.
        dtype: of the weights of a model that is loaded; `"auto"` as they were saved.
        cache_folder: where scores are kept; by default beside the cache of `datasets`.
        device: where the model scores; by default where it is, or the process's own device.
        model_init_kwargs: further arguments of `from_pretrained`, such as `revision`.

    Raises:
        ValueError: if columns or contents are missing, no example has a label token, the models tokenise differently,
            GraNd cannot be exact, or columns of these names are not from an earlier scoring.
        NonFiniteScoreError: for a score that is not finite, naming rows.
    """
    ids = example_id_column or earlier_ids(dataset)
    dataset = without_difficulty(dataset)
    scoring = DifficultyScoring(
        dataset=dataset,
        models=models,
        by=(by,) if isinstance(by, str) else tuple(by),
        tokenizer=tokenizer,
        layout=layout or SFTFormat(),
        example_id_column=ids,
        parameters=parameters,
        exact=exact,
        batch_size=batch_size,
        dtype=dtype,
        cache_folder=cache_folder,
        device=device,
        model_init_kwargs=model_init_kwargs,
    )
    return with_difficulty(dataset, scoring.run())


@dataclass(frozen=True)
class DifficultyScoring:
    """SFT data and what is to score it; see `add_difficulty` for the arguments."""

    dataset: Dataset
    models: Any
    by: tuple[str, ...] = ("el2n",)
    tokenizer: Any = None
    layout: SFTFormat = field(default_factory=SFTFormat)
    example_id_column: str | None = None
    parameters: str = TRAINABLE
    exact: bool = True
    batch_size: int = 8
    dtype: Any = "auto"
    cache_folder: str | os.PathLike | None = None
    device: Any = None
    model_init_kwargs: dict[str, Any] | None = None

    def __post_init__(self):
        check_scores(self.by)
        self.layout.content_columns(self.dataset)
        if not self._models:
            raise ValueError("`models` is an empty list. Name at least one model.")
        check_dtype(self.dtype)
        try:
            re.compile(self.parameters)
        except re.error as error:
            raise ValueError(f"`parameters` is {self.parameters!r}, no regular expression: {error}.") from error

    @cached_property
    def _models(self) -> list[Any]:
        return list(self.models) if isinstance(self.models, (list, tuple)) else [self.models]

    @cached_property
    def options(self) -> dict[str, Any]:
        """Further arguments of `from_pretrained`."""
        return dict(self.model_init_kwargs or {})

    @cached_property
    def names(self) -> list[str]:
        """Name and short hash of each model."""
        return [describe_model(model, self.options.get("revision")) for model in self._models]

    @property
    def model(self) -> str:
        """Name and short hash of what scores."""
        return ", ".join(self.names)

    @cached_property
    def ids(self) -> list:
        """Ids of the examples."""
        return example_ids(self.dataset, self.layout.content_columns(self.dataset), self.example_id_column)

    @cached_property
    def rows(self) -> TokenRows:
        """Tokens and labels of each example."""
        rows = self._tokenized(self._models[0])
        if not rows.label_tokens.any():
            raise ValueError(
                "No example has a label token, so there is nothing to score. Look at `max_length` "
                f"({self.layout.max_length}), which may leave the prompts only, and at the masks of the data."
            )
        if self._needs_tokenizer and len(self._models) > 1 and self._differ():
            for model, name in zip(self._models[1:], self.names[1:], strict=True):
                if hash_token_rows(self._tokenized(model)) != hash_token_rows(rows):
                    raise ValueError(
                        f"The tokenizers of {self.names[0]!r} and {name!r} make different tokens or labels of this "
                        "data, so that their scores are not of the same thing. Give checkpoints of one model, or the "
                        "`tokenizer` that all of them use."
                    )
        return rows

    def _differ(self) -> bool:
        """Return whether the models' tokenizers are not all the same."""
        return len({fingerprints.hash_tokenizer(self._tokenizer_of(model)) for model in self._models}) > 1

    def _tokenized(self, model: Any) -> TokenRows:
        tokenizer = self._tokenizer_of(model) if self._needs_tokenizer else self.tokenizer
        return tokenize_sft(self.dataset, tokenizer, self.layout)

    @property
    def _needs_tokenizer(self) -> bool:
        return self.tokenizer is None and "input_ids" not in self.dataset.column_names

    def _tokenizer_of(self, model: Any) -> Any:
        return tokenizer_of(model, self.options)

    @cached_property
    def keys(self) -> list[str]:
        """Say, for each model, which weights score which tokens in which way."""
        common = ("difficulty", 2, hash_token_rows(self.rows), str(self.dtype))
        found = zip(self._models, self.names, strict=True)
        return [fingerprints.digest(*common, hash_of(name), *self._way(model)) for model, name in found]

    def _way(self, model: Any) -> tuple:
        """Say how a model scores; what of it can be trained is not among the values of a model in memory."""
        if "grand" not in self.by:
            return ("forward",)
        saved = is_saved(model)
        return "gradients", self.exact, self.parameters if saved else chosen_names(model, self.parameters)

    @cached_property
    def key(self) -> str:
        """Says which models, data, settings and scores these are."""
        return fingerprints.digest(self.keys, sorted(self.by), self.ids)

    def run(self) -> Difficulty:
        """Return the scores of all examples: computed now, by all processes, or before."""
        cache = score_cache(self.cache_folder)
        items = self.rows.labelled()
        self._warn_of_unlabelled(len(self.rows) - len(items))
        figures: list[dict[str, np.ndarray]] = []
        scored, coverage = 0, None
        for number, (model, key) in enumerate(zip(self._models, self.keys, strict=True)):
            if len(self._models) > 1:
                logger.info(f"Scoring by {self.names[number]} ({number + 1} of {len(self._models)}).")
            scores, coverage = self._score(model, items, cache / key, key)
            figures.append({name: self._in_place(items, values) for name, values in scores.columns.items()})
            scored += scores.scored
            clear_device_cache(garbage_collection=True)  # the next model needs the room
        return Difficulty.of(
            self.by,
            figures,
            ids=self.ids,
            has_ids=self.example_id_column is not None,
            label_tokens=self.rows.label_tokens,
            models=self.names,
            key=self.key,
            scored=scored,
            coverage=coverage,
        )

    def _in_place(self, items: TokenRows, values: np.ndarray) -> np.ndarray:
        """Return figures of the examples that have labels as figures of all, NaN for the others. (n,)"""
        whole = np.full(len(self.rows), np.nan)
        whole[items.numbers] = values
        return whole

    def _warn_of_unlabelled(self, number: int) -> None:
        if number:
            first = [self.ids[row] for row in np.flatnonzero(self.rows.label_tokens == 0)[:5]]
            logger.warning(
                f"{number} of {len(self.rows)} examples have no label token: the completion is empty or masked, or "
                f"max_length ({self.layout.max_length}) cuts it off. Training learns nothing from them, and their "
                f"scores are empty. The first ones: {listing(first)}."
            )

    def _score(self, model: Any, items: TokenRows, folder: Path, key: str) -> tuple[Scores, dict[str, Any] | None]:
        """Return the figures of the examples that have labels, and of which parameters GraNd is the norm."""
        columns = (GradientScorer if "grand" in self.by else ForwardScorer).columns
        kept = load_scores(folder, key, columns, len(items))
        if kept is not None:
            return Scores(kept, 0), on_main(lambda: read_json(folder / COVERAGE))
        trainable = "grand" in self.by
        ready = ready_language_model(model, self.dtype, self.device, trainable, **self.options)
        with ready as live, token_statistics(live, OUTPUTS) as statistics:
            check_rows(items, live)
            numbers = items.numbers
            if not trainable:
                scorer = ForwardScorer(statistics)
                return score_rows(items, scorer, folder, key, self.batch_size, numbers, "example"), None
            with recorded_norms(live, self.parameters, self.exact) as recorder:
                coverage = {"coverage": recorder.coverage, "uncovered": recorder.uncovered}
                if recorder.uncovered:
                    logger.warning(
                        f"GraNd leaves out {len(recorder.uncovered)} parameters whose gradients cannot be recorded "
                        f"({1 - recorder.coverage:.1%} of the entries): {listing(recorder.uncovered)}."
                    )
                on_main(lambda: _write_coverage(folder, coverage))
                scorer = GradientScorer(statistics, recorder)
                return score_rows(items, scorer, folder, key, self.batch_size, numbers, "example"), coverage


def _write_coverage(folder: Path, coverage: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / COVERAGE, coverage)
