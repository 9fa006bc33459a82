"""Limits on what a model may give away: a model that is above one is not pushed."""

import shlex
from dataclasses import dataclass, fields
from pathlib import Path

from ..audit.summary import AuditSummary, find_audits


class LimitExceeded(ValueError):
    """A model gives more away than a limit allows."""


@dataclass(frozen=True)
class Limits:
    """What a model may give away at most; None is no limit.

    Args:
        max_extraction_above_baseline: share of the members whose suffix greedy decoding writes out, less the share of
            held-out examples, in [0, 1].
        max_tpr_at_1_fpr: share of the members that the best attack recognises at a false positive rate of 1 %, in
            [0, 1]; guessing has .01.

    Raises:
        ValueError: naming the field and the value that is out of its domain.
    """

    max_extraction_above_baseline: float | None = None
    max_tpr_at_1_fpr: float | None = None

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise ValueError(f"`{field.name}` must be a number in [0, 1], but it is {value!r}.")
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"`{field.name}` must be in [0, 1], but it is {value}: it is a share, 0.05 is 5 %.")

    @property
    def active(self) -> bool:
        """Whether there is any limit."""
        return any(getattr(self, field.name) is not None for field in fields(self))

    def check(self, folder: str | Path) -> list[str]:
        """Return a sentence for each limit that the model in a folder keeps.

        Args:
            folder: of the model, with its audit.

        Raises:
            LimitExceeded: if a figure is above its limit; the message says which one and by how much.
            ValueError: if a limit cannot be judged: without an audit (the message has the command), by one that is
                unsound or confounded, of other weights, or with too few held-out examples.
        """
        if not self.active:
            return []
        audit = find_audits(folder)
        self._check_audit(audit, Path(folder))
        kept, above = [], []
        for name, figure, what in (
            (
                "max_extraction_above_baseline",
                audit.extraction_above_held_out,
                "greedy decoding writes out more of the members' suffixes than of held-out ones, by a share of",
            ),
            (
                "max_tpr_at_1_fpr",
                audit.tpr_at_1_percent_fpr,
                f"at a false positive rate of 1 % the best attack ({audit.best_attack}) recognises a share of the "
                "members of",
            ),
        ):
            limit = getattr(self, name)
            if limit is None:
                continue
            said = f"{what} {figure:.4g}; `{name}` is {limit:g}"
            if figure > limit:
                above.append(f"{said}, so the figure is {figure - limit:.4g} above the limit.")
            else:
                kept.append(f"{said[0].upper()}{said[1:]}.")
        if above:
            raise LimitExceeded(
                f"{str(folder)!r} was not pushed, and nothing in it was changed: {' And '.join(above)} The report in "
                f"{audit.folder} says what to change; audit again afterwards, or raise the limit."
            )
        return kept

    def _check_audit(self, audit: AuditSummary | None, folder: Path) -> None:
        """Refuse to judge by an audit that is missing or says nothing of these weights."""
        needed = {"max_extraction_above_baseline": "extraction", "max_tpr_at_1_fpr": "membership"}
        for name, kind in needed.items():
            if getattr(self, name) is not None and (audit is None or kind not in audit.audits):
                raise ValueError(
                    f"`{name}` is set, but {str(folder)!r} has no {kind} audit to judge it by. Make one first: "
                    f"gradkit audit {kind} --model_name_or_path {shlex.quote(str(folder))} ..."
                )
        again = f"Audit it again: gradkit audit {audit.audits[0]} --model_name_or_path {shlex.quote(str(folder))} ..."
        if audit.stamps:
            raise ValueError(f"The audit of {str(folder)!r} cannot be judged by limits. {' '.join(audit.stamps)}")
        if audit.of_these_weights is False:
            raise ValueError(f"The audit in {audit.folder} is of other weights than those in the folder now. {again}")
        if self.max_tpr_at_1_fpr is not None and audit.tpr_at_1_percent_fpr is None:
            raise ValueError(
                f"`max_tpr_at_1_fpr` is set, but the audit in {audit.folder} has fewer than 100 held-out examples, "
                "with which a false positive rate of 1 % cannot be measured. Hold more examples out, and audit again."
            )
        if self.max_extraction_above_baseline is not None and audit.extraction_above_held_out is None:
            raise ValueError(
                f"`max_extraction_above_baseline` is set, but the audit in {audit.folder} has no rate of held-out "
                f"examples to compare with. {again}"
            )
