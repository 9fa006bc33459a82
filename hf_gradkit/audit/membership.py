"""Membership audit: can one tell, from what the model says of a text, whether it was trained on it?"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from .._text import check_whole_number, listing
from ..scoring.processes import on_main
from ..scoring.sft_data import SFTFormat
from .attacks import FeatureRecord, GradientNorm, GradientRecord, StepRatio, TokenRecord, build_attacks
from .evaluation import ALPHAS, BlindRecord, Trial, gate, require_sklearn
from .examples import Examples, zlib_bytes
from .gradient_records import score_gradients
from .models import REFERENCE, AuditedModel
from .setup import load_examples
from .token_records import default_cache, outputs_for, score_tokens, token_records

BASELINES = ("loss", "flora")  # what every other attack is compared with


@dataclass(frozen=True)
class MembershipAudit:
    """What a membership audit found.

    Attributes:
        figures: everything that a report shows, as JSON can write it; no text of an example.
        scores: of each attack, members first; higher for a more likely member. (N,) each
        members: which examples are members. (N,) bool
        hashes: of the examples' tokens. N strings
        tokens: number of tokens of each example. (N,)
        texts: of the examples. N strings
    """

    figures: dict[str, Any]
    scores: dict[str, np.ndarray]
    members: np.ndarray
    hashes: list[str]
    tokens: np.ndarray
    texts: list[str] = field(repr=False)

    def table(self, show_text: bool = False) -> dict[str, Any]:
        """Return one row an example, as columns: hash, membership, tokens and scores; its text only if asked for."""
        columns = {"hash": self.hashes, "member": self.members, "tokens": self.tokens, **self.scores}
        return {**columns, "text": self.texts} if show_text else columns


def audit_membership(
    model: Any,
    dataset: Dataset,
    non_members: Dataset | None = None,
    *,
    reference_model: Any = None,
    hold_out: Any = None,
    tokenizer: Any = None,
    layout: SFTFormat | None = None,
    attacks: list[str] | None = None,
    attack_kwargs: dict[str, dict[str, Any]] | None = None,
    document_column: str | None = None,
    max_examples: int | None = None,
    false_positive_rates: tuple[float, ...] = ALPHAS,
    bootstrap_rounds: int = 1000,
    seed: int = 0,
    batch_size: int = 8,
    cache_folder: str | os.PathLike | None = None,
    dtype: Any = "auto",
    device: Any = None,
    model_init_kwargs: dict[str, Any] | None = None,
) -> MembershipAudit:
    """Measure how well membership attacks tell the rows that a model was trained on from rows that were held out.

    One forward of the model and one of the reference feed all attacks; with a LoRA adapter the reference is the same
    weights with the adapter off. All processes of a launch share the forwards, all of them get the same result, and
    what was scored is kept for the next call.

    >>> split = hold_out(dataset, 0.1, output_dir="runs/model")  # before training on split.train
    >>> audit = audit_membership("runs/model", dataset, reference_model="base")
    >>> audit.figures["attacks"]["flora"]["auc"]

    Args:
        model: a folder, a model of the Hub, or a causal language model in memory.
        dataset: what `hold_out` was given; with `non_members`, the rows that were trained on.
        non_members: rows that were not trained on; by default those that the record says were held out.
        reference_model: the model before fine-tuning, given likewise; by default the model with its adapter off.
        hold_out: the record of the hold-out, or the folder that has it; by default the model's own folder.
        tokenizer: by default the one that was saved with the model; a model in memory needs it.
        layout: how tokens and labels were made in training; TRL's defaults when None.
        attacks: names; when None all that can run without a backward pass.
        attack_kwargs: options of attacks, by name.
        document_column: rows with the same value are one document, drawn together in resamples.
        max_examples: rows to take at most of each side, drawn at random.
        false_positive_rates: at which true positive rates are reported.
        bootstrap_rounds: resamples of the intervals.
        seed: of every draw.
        batch_size: examples in a batch of one process.
        cache_folder: where scores are kept; by default beside the cache of `datasets`.
        dtype: of the weights of models that are loaded; "auto" as they were saved.
        device: where models run.
        model_init_kwargs: further arguments of `from_pretrained`.

    Raises:
        ValueError: for data, tokenizers, records, attacks or options that do not fit; see `load_examples`.
        ImportError: if scikit-learn is missing.
    """
    require_sklearn()
    _check_numbers(false_positive_rates, bootstrap_rounds)
    models = AuditedModel(model, reference_model, dtype, device, model_init_kwargs)
    chosen = build_attacks(attacks, attack_kwargs or {}, reference=REFERENCE in models.passes)
    _check_split(models, chosen)
    examples = load_examples(
        models, dataset, non_members, hold_out, tokenizer, layout, document_column, max_examples, seed
    )
    cache = cache_folder or default_cache()
    found = score_tokens(models, examples.rows, outputs_for(chosen), cache, batch_size)
    gradients = None
    if any(attack.record_type is not TokenRecord for attack in chosen.values()):
        gradients = score_gradients(models, examples.rows, cache, batch_size, _step(chosen))
    trial = Trial(examples.members, examples.documents, tuple(false_positive_rates), bootstrap_rounds, seed)
    return on_main(lambda: _evaluate(models, examples, chosen, found, gradients, trial))


def _check_numbers(alphas: Any, rounds: Any) -> None:
    wrong = [a for a in alphas if isinstance(a, bool) or not isinstance(a, (int, float)) or not 0 < a < 1]
    if wrong:
        raise ValueError(f"`false_positive_rates` must lie above 0 and below 1, but {wrong[0]!r} does not.")
    check_whole_number("bootstrap_rounds", rounds, 2)


def _check_split(models: AuditedModel, attacks: dict[str, Any]) -> None:
    """Raise `ValueError` for attacks that step parameters or read whole gradients, of a model that is split."""
    if models.split is None or not isinstance(models.model, (str, os.PathLike)):
        return
    single = [name for name, attack in attacks.items() if _step({name: attack}) is not None]
    if single:
        raise ValueError(
            f"Under {models.split} no process has the whole gradient of an example, which {listing(single)} need. "
            "Leave them out, or use one process or --accelerate_config multi_gpu; norms of order 2 run here as well."
        )


def _step(attacks: dict[str, Any]) -> float | None:
    """Return the size of the single step, or None where norms of order 2 are enough."""
    steps = {attack.eta for attack in attacks.values() if isinstance(attack, StepRatio)}
    single = any(isinstance(attack, GradientNorm) and attack.p != "2" for attack in attacks.values())
    return next(iter(steps), StepRatio.eta) if steps or single else None


def _evaluate(
    models: AuditedModel,
    examples: Examples,
    attacks: dict[str, Any],
    found: dict[str, Any],
    gradients: tuple[list[GradientRecord], np.ndarray] | None,
    trial: Trial,
) -> MembershipAudit:
    records = token_records(found, examples.learnt_zlib_bytes)
    given: dict[type, Any] = {TokenRecord: records}
    if gradients is not None:
        given[GradientRecord] = gradients[0]
        given[FeatureRecord] = FeatureRecord(gradients[1], examples.members, examples.documents, trial.seed)
    scores = {
        name: np.asarray(attack(given[attack.record_type]), dtype=np.float64) for name, attack in attacks.items()
    }
    _check_scores(scores, len(records))
    base_losses = np.array([record.reference.loss for record in records]) if REFERENCE in found else None
    texts = examples.texts
    blind = BlindRecord(texts, examples.tokens, examples.special_tokens, zlib_bytes(texts), base_losses)
    checked = gate(blind, trial)
    figures = {
        "format": 1,
        "audit": "membership",
        "model": models.name,
        "model_hash": models.saved_hash,
        "reference": models.reference_name,
        "members": trial.counts[0],
        "non_members": trial.counts[1],
        "documents": len(np.unique(examples.documents)),
        "unsound": examples.unsound,
        "confounded": checked["confounded"],
        "gate": checked,
        "attacks": trial.evaluate(scores, BASELINES),
        "doubtful": doubtful(attacks, records),
        "utility": utility(records, examples.members),
        "level": trial.level,
        "bootstrap_rounds": trial.rounds,
        "seed": trial.seed,
    }
    return MembershipAudit(figures, scores, examples.members, examples.hashes, examples.tokens, texts)


def _check_scores(scores: dict[str, np.ndarray], n: int) -> None:
    for name, values in scores.items():
        if values.shape != (n,) or not np.isfinite(values).all():
            raise ValueError(
                f"The attack {name!r} returned scores of shape {values.shape}, {np.sum(~np.isfinite(values))} of them "
                f"not finite, for {n} examples, where one finite score each is needed."
            )


def doubtful(attacks: dict[str, Any], records: list[TokenRecord]) -> dict[str, int]:
    """Return, for each attack that says so, how many of its scores say little."""
    return {
        name: sum(attack.doubtful(record) for record in records)
        for name, attack in attacks.items()
        if hasattr(attack, "doubtful")
    }


def utility(records: list[TokenRecord], members: np.ndarray) -> dict[str, float]:
    """Return the mean loss over all label tokens of members and non-members, before and after fine-tuning. Nats"""
    found = {}
    for side, name in ((True, "member_loss"), (False, "held_out_loss")):
        of_side = [record for record, member in zip(records, members, strict=True) if member == side]
        found[name] = -float(np.concatenate([record.target.log_probs for record in of_side]).mean())
        if of_side[0].reference is not None:
            before = [record.base.log_probs for record in of_side]
            found[f"reference_{name}"] = -float(np.concatenate(before).mean())
    return found


def default_folder(model: Any) -> Path | None:
    """Return where a report goes by default: `_audit` in the model's folder, which the Trainer never pushes."""
    local = isinstance(model, (str, os.PathLike)) and Path(model).expanduser().is_dir()
    return Path(model).expanduser() / "_audit" if local else None
