"""The figures of weighting that appear in a run's logs.

`weights/ess`           effective sample size of the compared examples, (sum u)^2 / (n sum u^2), a fraction of n
`weights/mean|max|min`  multipliers that the examples got, column weights included
`weights/window_mean`   scope "running": the moving average that multipliers are divided by
`loss/unweighted`       the loss that training would report without weights (of pairs: their DPO loss)
`margins/mean`          mean reward margin, chosen minus rejected, as logits        (with a margin column)
`margins/agreement`     share of pairs whose margin speaks for the label            (with a margin column)
`margins/temperature`   what the margins were divided by                            (with a margin column)
`group_loss/<name>`     mean loss of a group's examples         (with a group column)
`group_weight/<name>`   mean multiplier of a group's examples   (with a group column)

All are over all ranks and since the last log; examples that fill up an epoch's last batch are left out.
"""

import math
from collections import defaultdict

from torch import Tensor


class ExampleMetrics:
    """Accumulates figures between two logs; every rank feeds it the same gathered values."""

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        """Forget everything since the last log."""
        self._weights = _Mean()
        self._largest, self._smallest = -math.inf, math.inf
        self._ess = _Mean()
        self._window_mean: float | None = None
        self._margins, self._agreement = _Mean(), _Mean()
        self._temperature: float | None = None
        self._loss = _Mean()
        self._step_sum = self._step_count = 0.0
        self._groups: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0])

    def add_weights(self, multipliers: Tensor, ess: float | None, window_mean: float | None) -> None:
        """Add the multipliers of one micro-batch of all ranks. (n,)"""
        if len(multipliers):
            self._weights.add(float(multipliers.sum()), len(multipliers))
            self._largest = max(self._largest, float(multipliers.max()))
            self._smallest = min(self._smallest, float(multipliers.min()))
        if ess is not None:
            self._ess.add(ess)
        self._window_mean = window_mean

    def add_margins(self, margins: Tensor, temperature: float) -> None:
        """Add the raw reward margins of one micro-batch of all ranks, (n,), and what divides them."""
        self._margins.add(float(margins.sum()) / temperature, len(margins))
        self._agreement.add(float((margins > 0).sum()), len(margins))
        self._temperature = temperature

    def add_loss(self, total: float, count: float) -> None:
        """Add a micro-batch's summed loss and what it is divided by (tokens, or examples in sequence mode)."""
        self._step_sum += total
        self._step_count += count

    def add_group(self, name: str, losses: Tensor, multipliers: Tensor) -> None:
        """Add the losses and multipliers of a group's examples. (n,)"""
        figures = self._groups[name]
        figures[0] += float(losses.sum())
        figures[1] += float(multipliers.sum())
        figures[2] += len(losses)

    def end_step(self) -> None:
        """Close an optimizer step: the reported loss is a mean over steps, as the trainer's own."""
        if self._step_count:
            self._loss.add(self._step_sum / self._step_count)
        self._step_sum = self._step_count = 0.0

    def flush(self) -> dict[str, float]:
        """Return the figures since the last log, and forget them."""
        self.end_step()
        figures: dict[str, float] = {}
        if self._ess.count:
            figures["weights/ess"] = self._ess.value
        if self._weights.count:
            figures["weights/mean"] = self._weights.value
            figures["weights/max"], figures["weights/min"] = self._largest, self._smallest
        if self._window_mean is not None:
            figures["weights/window_mean"] = self._window_mean
        if self._margins.count:
            figures["margins/mean"], figures["margins/agreement"] = self._margins.value, self._agreement.value
            figures["margins/temperature"] = self._temperature
        if self._loss.count:
            figures["loss/unweighted"] = self._loss.value
        for name, (loss, multiplier, count) in sorted(self._groups.items()):
            figures[f"group_loss/{name}"] = loss / count
            figures[f"group_weight/{name}"] = multiplier / count
        self.reset()
        return figures


def effective_sample_size(multipliers: Tensor) -> float:
    """Return (sum u)^2 / (n sum u^2) in (0, 1]: the share of examples that the weights leave effective. (n,) -> ()

    All multipliers zero gives 0.0.
    """
    squares = float(multipliers.square().sum())
    return float(multipliers.sum()) ** 2 / (len(multipliers) * squares) if squares > 0 else 0.0


class _Mean:
    """A mean that is added to."""

    def __init__(self):
        self.total, self.count = 0.0, 0

    def add(self, total: float, count: int = 1) -> None:
        self.total, self.count = self.total + total, self.count + count

    @property
    def value(self) -> float:
        return self.total / self.count
