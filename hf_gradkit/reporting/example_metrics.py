"""The figures of weighting that appear in a run's logs.

`weights/ess`           effective sample size of the compared examples, (sum u)^2 / (n sum u^2), a fraction of n
`weights/mean|max|min`  multipliers that the examples got, column weights included
`weights/window_mean`   scope "running": the moving average that multipliers are divided by
`loss/unweighted`       the loss that training would report without weights
`group_loss/<name>`     mean loss of a group's examples         (with a group column)
`group_weight/<name>`   mean multiplier of a group's examples   (with a group column)

All are over all ranks and since the last log; examples that fill up an epoch's last batch are left out.
"""

from collections import defaultdict

import torch
from torch import Tensor


class ExampleMetrics:
    """Accumulates figures between two logs; every rank feeds it the same gathered values."""

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        """Forget everything since the last log."""
        self._multipliers: list[Tensor] = []
        self._ess: list[float] = []
        self._window_mean: list[float] = []
        self._step_losses: list[float] = []
        self._step_sum = self._step_count = 0.0
        self._groups: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0])

    def add_weights(self, multipliers: Tensor, ess: float | None, window_mean: float | None) -> None:
        """Add the multipliers of one micro-batch of all ranks. (n,)"""
        self._multipliers.append(multipliers)
        if ess is not None:
            self._ess.append(ess)
        if window_mean is not None:
            self._window_mean.append(window_mean)

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
            self._step_losses.append(self._step_sum / self._step_count)
        self._step_sum = self._step_count = 0.0

    def flush(self) -> dict[str, float]:
        """Return the figures since the last log, and forget them."""
        self.end_step()
        figures: dict[str, float] = {}
        multipliers = torch.cat(self._multipliers) if self._multipliers else torch.empty(0)
        if self._ess:
            figures["weights/ess"] = sum(self._ess) / len(self._ess)
        if len(multipliers):
            figures["weights/mean"] = float(multipliers.mean())
            figures["weights/max"] = float(multipliers.max())
            figures["weights/min"] = float(multipliers.min())
        if self._window_mean:
            figures["weights/window_mean"] = self._window_mean[-1]
        if self._step_losses:
            figures["loss/unweighted"] = sum(self._step_losses) / len(self._step_losses)
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
