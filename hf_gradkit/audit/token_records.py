"""One forward of the target and one of the reference, through the scoring engine, for all token-level scores."""

import os
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from ..data.private_files import make_private_folder
from ..scoring import TokenScorer, fingerprints, load_scores, score_rows, token_statistics
from ..scoring.language_models import check_rows
from ..scoring.processes import on_main
from ..scoring.sharding import is_split
from ..scoring.token_rows import TokenRow
from .attacks import TokenRecord, TokenScores
from .examples import token_hashes
from .models import REFERENCE, TARGET, AuditedModel

LOG_PROBS = "log_probs"
# Which figure of the model gives what an attack reads of `TokenScores`.
COLUMNS = {"mean": "entropy", "std": "log_prob_variance", "top1": "is_top1"}


class QuietScorer(TokenScorer):
    """Scores without tensors of inference mode, which a model that is split, or trained further, could not use."""

    @torch.no_grad()
    def score(self, items: list[TokenRow]) -> dict[str, np.ndarray]:
        """Return each figure at the label tokens. (n,) of arrays (label tokens,) float32"""
        found = self._statistics(items)
        return {name: found.by_example(name) for name in self.columns}


def outputs_for(attacks: dict[str, Any]) -> tuple[str, ...]:
    """Return the figures of the target that attacks need."""
    needed = {name for attack in attacks.values() if attack.record_type is TokenRecord for name in attack.needs}
    return (LOG_PROBS, *(column for name, column in COLUMNS.items() if name in needed))


def default_cache() -> Path:
    """Return where an audit keeps what was scored: beside the cache of `datasets`, for its owner alone."""
    return make_private_folder(Path(datasets.config.HF_DATASETS_CACHE) / "hf_gradkit" / "audit")


def score_tokens(
    models: AuditedModel,
    rows: list[TokenRow],
    outputs: tuple[str, ...],
    cache_folder: str | os.PathLike,
    batch_size: int = 8,
) -> dict[str, dict[str, np.ndarray]]:
    """Return the target's and the reference's figures of each label token, scored now or before.

    Args:
        models: what is audited.
        rows: examples.
        outputs: figures of the target; of the reference there are the log-probabilities.
        cache_folder: where scores are kept.
        batch_size: examples in a batch of one process.

    Returns:
        By pass ("target", "reference") and figure, (n,) of arrays (label tokens,).

    Raises:
        ValueError: if tokens and models do not fit.
        NonFiniteScoreError: for a figure that is not finite, naming rows.
    """
    content = fingerprints.digest(token_hashes(rows))
    wanted = {which: outputs if which == TARGET else (LOG_PROBS,) for which in models.passes}
    keys = {
        which: fingerprints.digest("tokens", 2, models.content(which), content, names)
        for which, names in wanted.items()
    }
    folders = {which: Path(cache_folder) / key for which, key in keys.items()}
    found = {
        which: kept
        for which, names in wanted.items()
        if (kept := load_scores(folders[which], keys[which], names, len(rows))) is not None
    }
    for which, model in models.open(tuple(which for which in wanted if which not in found)):
        _check(rows, model, which)
        on_main(lambda which=which: make_private_folder(folders[which]))
        with token_statistics(model, wanted[which], one_pass=True) as statistics:
            split = is_split(model)
            scorer = (QuietScorer if split else TokenScorer)(statistics, wanted[which])
            found[which] = score_rows(
                rows,
                scorer,
                folders[which],
                keys[which],
                batch_size,
                rows=[row.row for row in rows],
                unit="example",
                in_step=split,
            ).columns
    return found


def _check(rows: list[TokenRow], model: Any, which: str) -> None:
    try:
        check_rows(rows, model)
    except ValueError as error:
        if which == TARGET:
            raise
        raise ValueError(f"The reference is no model before this fine-tuning: {error}") from error


def token_records(found: dict[str, dict[str, np.ndarray]], zlib_bytes: np.ndarray) -> list[TokenRecord]:
    """Return what the attacks look at of each example.

    Args:
        found: what `score_tokens` gives.
        zlib_bytes: length of each example's text after zlib. (n,)
    """
    references = found.get(REFERENCE)
    records = []
    for i, size in enumerate(zlib_bytes):
        reference = None if references is None else TokenScores(references[LOG_PROBS][i].astype(np.float64))
        records.append(TokenRecord(_target_scores(found[TARGET], i), reference, int(size)))
    return records


def _target_scores(columns: dict[str, np.ndarray], i: int) -> TokenScores:
    def figure(name: str) -> np.ndarray | None:
        column = COLUMNS[name]
        return columns[column][i].astype(np.float64) if column in columns else None

    entropy, variance, top1 = figure("mean"), figure("std"), figure("top1")
    return TokenScores(
        log_probs=columns[LOG_PROBS][i].astype(np.float64),
        mean=None if entropy is None else -entropy,
        std=None if variance is None else np.sqrt(variance),
        top1=None if top1 is None else top1 > 0.5,
    )
