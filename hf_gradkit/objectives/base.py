"""What every preference objective shares: the record of compared pairs, and the two parts of a pair's loss.

Letters: `lw`, `ll` log-probability of the chosen (won) and the rejected (lost) answer, summed over its tokens (n,);
`m` = (lw - lw_ref) - (ll - ll_ref) the pair's margin, not multiplied by beta (n,); `T` tokens of an answer (n,).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class PreferenceRecord:
    """What a policy and its reference say of n preference pairs.

    Attributes:
        chosen_logps, rejected_logps: the policy's log-probabilities, summed over the answer's tokens. (n,)
        ref_chosen_logps, ref_rejected_logps: the reference's. (n,)
        chosen_tokens, rejected_tokens: number of tokens in each sum. (n,)
        beta: strength of the pull towards the reference.
    """

    chosen_logps: Tensor
    rejected_logps: Tensor
    ref_chosen_logps: Tensor
    ref_rejected_logps: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    beta: float

    @property
    def margins(self) -> Tensor:
        """How much more the policy prefers the chosen answer than the reference does, in nats. (n,)"""
        return (self.chosen_logps - self.ref_chosen_logps) - (self.rejected_logps - self.ref_rejected_logps)


def dpo_losses(record: PreferenceRecord) -> Tensor:
    """Return -log s(beta m), the DPO loss (arXiv 2305.18290, eq. 7), of each pair. (n,)"""
    return -F.logsigmoid(record.beta * record.margins)


@dataclass(frozen=True)
class Adaptation:
    """What an objective makes of the pairs of one global micro-batch.

    Attributes:
        beta: the beta of this micro-batch.
        keep: which pairs of all ranks are trained on; at least one. (N,) bool
        figures: numbers for the logs.
    """

    beta: float
    keep: Tensor
    figures: dict[str, float]


@dataclass(frozen=True)
class Objective(ABC):
    """A preference objective: a record of pairs in, one loss value a pair out.

    A subclass states `preference`, and `regulariser` if it has one: weights of pairs multiply the first alone. One
    that looks at all pairs of a micro-batch, or remembers earlier ones, states `adapter`.
    """

    record_type: ClassVar[type] = PreferenceRecord

    @abstractmethod
    def preference(self, record: PreferenceRecord) -> Tensor:
        """Return the part of each pair's loss that compares its answers. (n,)"""

    def regulariser(self, record: PreferenceRecord) -> Tensor:
        """Return the part of each pair's loss that does not; zeros unless a subclass has one. (n,)"""
        return torch.zeros_like(record.chosen_logps)

    def adapter(self, beta: float, seed: int) -> Any:
        """Return what adapts the objective to each micro-batch - `adapt`, `state_dict`, `load_state_dict` - or None.

        Args:
            beta: the configured beta.
            seed: of the run; the same on every rank.
        """
        return None

    def __call__(self, record: PreferenceRecord) -> Tensor:
        """Return the loss of each pair. (n,)"""
        return self.preference(record) + self.regulariser(record)
