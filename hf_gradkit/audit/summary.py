"""What the audits in a model's folder found, in a few figures: for its model card, and for limits before a push."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..reporting.audit_files import FINDINGS, card_section
from ..reporting.audit_words import stamps

FOLDER = "_audit"  # in a model's folder
ALPHA = "0.01"  # the false positive rate of `tpr_at_1_percent_fpr`


@dataclass(frozen=True)
class AuditSummary:
    """The figures of a model's audits that a limit can be set on; None where the audit that has it was not made.

    Attributes:
        folder: where the audits' files are.
        audits: which there are: "membership", "extraction".
        stamps: why the figures must not be believed (unsound, confounded), a sentence each; empty where they may be.
        of_these_weights: whether the audits are of the model that is in the folder now; None where they do not say.
        tpr_at_1_percent_fpr: share of the members that the best attack recognises while it accuses at most 1 % of the
            non-members; None as well with fewer than 100 non-members, who cannot show it.
        best_attack: the attack that does.
        auc: of the attack whose AUC lies farthest from .5.
        extraction_rate: share of the members whose suffix greedy decoding writes word for word.
        held_out_extraction_rate: the same share of held-out examples: how much of it is not memorisation.
        section: what a model card says, in Markdown, under a heading; figures alone.
    """

    folder: Path
    audits: tuple[str, ...]
    stamps: tuple[str, ...]
    of_these_weights: bool | None
    tpr_at_1_percent_fpr: float | None
    best_attack: str | None
    auc: float | None
    extraction_rate: float | None
    held_out_extraction_rate: float | None
    section: str

    @property
    def extraction_above_held_out(self) -> float | None:
        """By how much members are extracted more often than held-out examples; below 0 where they are not."""
        if self.extraction_rate is None:
            return None
        return self.extraction_rate - self.held_out_extraction_rate


def find_audits(folder: str | Path) -> AuditSummary | None:
    """Return the summary of the audits in a model's folder (`<folder>/_audit`), or None if there are none.

    >>> summary = find_audits("runs/model")
    >>> summary.tpr_at_1_percent_fpr, summary.extraction_above_held_out

    Args:
        folder: of the model, as `gradkit audit --model_name_or_path` was given it.

    Raises:
        ValueError: for a file of figures that cannot be read; it is not taken for an audit that found nothing.
    """
    place = Path(folder).expanduser() / FOLDER
    found = [figures for kind in FINDINGS if (figures := _read(place / f"{kind}.json")) is not None]
    if not found:
        return None
    by_kind = {figures["audit"]: figures for figures in found}
    attack, rate = _best_rate(by_kind.get("membership"))
    extraction = by_kind.get("extraction")
    return AuditSummary(
        folder=place,
        audits=tuple(by_kind),
        stamps=tuple(dict.fromkeys(sentence for figures in found for sentence in stamps(figures))),
        of_these_weights=_same_weights(found, Path(folder).expanduser()),
        tpr_at_1_percent_fpr=rate,
        best_attack=attack,
        auc=_farthest_auc(by_kind.get("membership")),
        extraction_rate=None if extraction is None else extraction["members"]["greedy"]["share"],
        held_out_extraction_rate=None if extraction is None else extraction["non_members"]["greedy"]["share"],
        section=card_section(found),
    )


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        figures = json.loads(path.read_text())
        if figures["audit"] != path.stem:
            raise ValueError(f"it is of the audit {figures['audit']!r}")
    except (ValueError, KeyError, TypeError) as error:  # a file that was cut is no JSON, which is a ValueError
        raise ValueError(
            f"The figures of an audit in {str(path)!r} cannot be read ({type(error).__name__}: {error}). Audit the "
            "model again, or remove the file."
        ) from error
    return figures


def _best_rate(membership: dict[str, Any] | None) -> tuple[str | None, float | None]:
    """Return the attack with the highest true positive rate at 1 % false positives, and that rate."""
    attacks = {} if membership is None else membership["attacks"]
    rates = {name: of["tpr"][ALPHA] for name, of in attacks.items() if ALPHA in of["tpr"]}
    shown = {name: rate["tpr"] for name, rate in rates.items() if rate["supported"]}
    return max(shown.items(), key=lambda pair: pair[1], default=(None, None))


def _farthest_auc(membership: dict[str, Any] | None) -> float | None:
    if membership is None:
        return None
    return max((of["auc"] for of in membership["attacks"].values()), key=lambda auc: abs(auc - 0.5))


def _same_weights(found: list[dict[str, Any]], folder: Path) -> bool | None:
    """Return whether all audits are of the files that a folder has now, by their hash."""
    recorded = {figures.get("model_hash") for figures in found}
    if None in recorded:
        return None
    from ..scoring.fingerprints import hash_folder  # loads torch

    return recorded == {hash_folder(folder)}
