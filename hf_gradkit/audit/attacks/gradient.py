"""Attacks on the gradient of an example's own loss: a model that knows a text has little left to learn from it."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

ORDERS = ("1", "2", "inf")
ALL = "all"


@dataclass(frozen=True)
class GradientRecord:
    """What one backward pass of the target says of one example.

    Attributes:
        norms: by part of the model ("all", "embeddings", "layer 0", ..., "rest") and order ("1", "2", "inf"), the norm
            of the gradient of the example's mean token loss; orders that no attack needs are missing.
        loss: mean token loss, nats.
        stepped_loss: the same after one plain step on the example itself, or NaN where no attack needs it.
    """

    norms: dict[str, dict[str, float]]
    loss: float
    stepped_loss: float = math.nan


@dataclass(frozen=True)
class GradientAttack(ABC):
    """A membership attack on gradients: a record of one example in, one score out, HIGHER for a more likely member."""

    record_type: ClassVar[type] = GradientRecord
    needs_reference: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def score(self, record: GradientRecord) -> float:
        """Return the score of one example."""

    def __call__(self, records: Sequence[GradientRecord]) -> np.ndarray:
        """Return the score of each example. (n,) float64"""
        return np.array([self.score(record) for record in records], dtype=np.float64)


@dataclass(frozen=True)
class GradientNorm(GradientAttack):
    """-||g||_p, g the gradient of the mean token loss (arXiv 2402.17012).

    Args:
        p: order of the norm, "1", "2" or "inf". Only "2" comes from a backward pass of a whole batch; the others take
            one for each example.
        part: "all", "embeddings", "rest", or a layer such as "layer 0".
    """

    p: str = "2"
    part: str = ALL

    def __post_init__(self):
        object.__setattr__(self, "p", str(self.p))  # YAML reads 2 as a number
        if self.p not in ORDERS:
            raise ValueError(f"`p` of GradientNorm must be '1', '2' or 'inf', but it is {self.p!r}.")

    def score(self, record: GradientRecord) -> float:
        if self.part not in record.norms:
            raise ValueError(
                f"`part` of GradientNorm is {self.part!r}, and the gradients have the parts {list(record.norms)}."
            )
        return -record.norms[self.part][self.p]


@dataclass(frozen=True)
class StepRatio(GradientAttack):
    """L(theta - eta g) / L(theta), one plain step on the example itself (arXiv 2402.17012).

    Higher where the step helps less. The paper's direction is not sure, so look at both: an AUC far below .5 tells
    members apart as well.

    Args:
        eta: size of the step.
    """

    needs: ClassVar[tuple[str, ...]] = ("stepped_loss",)
    eta: float = 5e-5

    def __post_init__(self):
        if isinstance(self.eta, bool) or not isinstance(self.eta, (int, float)) or not 0 < self.eta < math.inf:
            raise ValueError(f"`eta` of StepRatio must be a number above 0, but it is {self.eta!r}.")

    def score(self, record: GradientRecord) -> float:
        return record.stepped_loss / record.loss
