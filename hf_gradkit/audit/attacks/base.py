"""What every membership attack on token log-probabilities shares: its typed record and its contract.

Letters: `t` label tokens of an example; `p_t` the target's probability of token t, `q_t` the reference's;
`L` = -mean(log p_t) the target's loss, `L_ref` the reference's, in nats a token.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np


@dataclass(frozen=True)
class TokenScores:
    """What one forward pass of one model says of the label tokens of one example.

    Attributes:
        log_probs: log-probability of each token, nats. (t,) float64
        mean: mean of log p over the vocabulary under the model itself, nats. (t,) float64
        std: standard deviation of log p over the vocabulary under the model itself, nats. (t,) float64
        top1: whether the token is the model's first choice. (t,) bool

    The last three are None where no attack needs them.
    """

    log_probs: np.ndarray
    mean: np.ndarray | None = None
    std: np.ndarray | None = None
    top1: np.ndarray | None = None

    @property
    def loss(self) -> float:
        """Mean token loss, nats."""
        return float(-self.log_probs.mean())


@dataclass(frozen=True)
class TokenRecord:
    """What an attack may look at of one example.

    Attributes:
        target: of the model that is audited.
        reference: of the model before fine-tuning, or None without one.
        zlib_bytes: length of the example's text after zlib, bytes.
    """

    target: TokenScores
    reference: TokenScores | None
    zlib_bytes: int

    @property
    def gains(self) -> np.ndarray:
        """log p_t - log q_t of each token, nats. (t,)

        Raises:
            ValueError: without a reference.
        """
        return self.target.log_probs - self.base.log_probs

    @property
    def base(self) -> TokenScores:
        """The reference.

        Raises:
            ValueError: without a reference.
        """
        if self.reference is None:
            raise ValueError(
                "This attack compares the target with the model before fine-tuning, and there is no reference. Name "
                "it with `reference_model_name_or_path`, or choose attacks that need the target alone."
            )
        return self.reference


@dataclass(frozen=True)
class TokenAttack(ABC):
    """A membership attack: a record of one example in, one score out, HIGHER for a more likely member.

    Attributes:
        needs_reference: whether it looks at the model before fine-tuning.
        needs: what it reads of the target's `TokenScores` besides `log_probs`.
    """

    record_type: ClassVar[type] = TokenRecord
    needs_reference: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def score(self, record: TokenRecord) -> float:
        """Return the score of one example."""

    def __call__(self, records: Sequence[TokenRecord]) -> np.ndarray:
        """Return the score of each example. (n,) float64"""
        return np.array([self.score(record) for record in records], dtype=np.float64)


def check_numbers(attack: Any, low: float, high: float = np.inf) -> None:
    """Raise `ValueError` for a field of an attack that is not a number in (low, high]."""
    for field in fields(attack):
        value = getattr(attack, field.name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low < value <= high:
            raise ValueError(
                f"`{field.name}` of {type(attack).__name__} must be a number above {low:g}"
                f"{'' if high == np.inf else f' and at most {high:g}'}, but it is {value!r}."
            )
