"""RPO: DPO, and the chosen answer must not become unlikely.

This is Regularized Preference Optimization (arXiv 2405.16436). Three other methods go by the same letters: NVIDIA's
Reward-aware Preference Optimization, Relative Preference Optimization, and TRL's former `rpo_alpha`, which follows
Iterative Reasoning Preference Optimization.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import Objective, PreferenceRecord, dpo_losses

NORMALIZATIONS = ("sum", "average")
# The authors' settings: eta of the cumulative form, and of the form with per-sequence averages.
ETA = {"sum": 0.005, "average": 0.2}


@dataclass(frozen=True)
class RPO(Objective):
    """Regularized Preference Optimization (arXiv 2405.16436).

        "sum"      L_i = -log s(beta m_i) - eta * beta * lw_i       (main paper, cumulative)
        "average"  L_i = -log s(beta m_i) - eta * lw_i / T_i        (appendix: the mean over the sequence)

    TRL's `loss_type=["sigmoid", "sft"]` is a relative: its second term is the mean over the tokens of a micro-batch,
    so it depends on how the batch is split, and `loss_weights=[1, w]` matches "sum" only at w = eta * beta * mean(T).

    Args:
        eta: strength of the second term, at least 0; None for the authors' value, 0.005 ("sum") or 0.2 ("average").
        normalization: "sum" or "average".

    Raises:
        ValueError: naming the field and the value that is out of its domain.
    """

    eta: float | None = None
    normalization: str = "sum"

    def __post_init__(self):
        if self.normalization not in NORMALIZATIONS:
            raise ValueError(f"`normalization` of rpo must be 'sum' or 'average', but it is {self.normalization!r}.")
        if self.eta is None:
            return
        if isinstance(self.eta, bool) or not isinstance(self.eta, (int, float)) or not 0 <= self.eta < float("inf"):
            raise ValueError(
                f"`eta` of rpo must be a number of at least 0, but it is {self.eta!r}. 0 is DPO; in YAML write 0.1 or "
                "1.0e-1, 1e-1 is a text there."
            )

    @property
    def strength(self) -> float:
        """`eta`, or the authors' value for the normalization."""
        return ETA[self.normalization] if self.eta is None else self.eta

    @property
    def note(self) -> str:
        """Which of the methods of this name it is, and in which form, for the page of a model."""
        form, term = {
            "sum": ("cumulative", "eta * beta * log p(chosen)"),
            "average": ("average", "eta * log p(chosen) / tokens of the chosen answer"),
        }[self.normalization]
        return (
            f"RPO is here Regularized Preference Optimization, in its {form} form: the loss is the DPO loss minus "
            f"`{term}`, with eta {self.strength:g}. It is neither NVIDIA's Reward-aware Preference Optimization, nor "
            "Relative Preference Optimization, nor TRL's former `rpo_alpha`."
        )

    tags: ClassVar[tuple[str, ...]] = ("regularized-preference-optimization",)

    def preference(self, record: PreferenceRecord) -> Tensor:
        return dpo_losses(record)

    def regulariser(self, record: PreferenceRecord) -> Tensor:
        if self.normalization == "sum":
            return -self.strength * record.beta * record.chosen_logps
        return -self.strength * record.chosen_logps / record.chosen_tokens.clamp(min=1)
