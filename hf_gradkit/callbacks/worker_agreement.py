"""What workers gathered of a step: how far they agree, how far they should, and what is wrong if they do not."""

import math
from typing import Any

import torch
from torch import Tensor

from ..gradients.workers import ChangeWithin, NoiseWithin, dispersion, mean_cosine, pairwise_cosines
from .worker_gradients import WorkerGradient
from .worker_verdicts import EPOCH, LEAST, Directions, offset_of_losses, offset_of_norms

NUMBERS = 6  # of a worker, before its sketch


def packed(gradient: WorkerGradient, loss: float | None) -> Tensor:
    """Return what one worker tells the others of a step, for `WorkerAgreement.update`. (6 + k,) float64"""
    numbers = [
        float("nan") if loss is None else loss,
        gradient.square,
        gradient.small,
        gradient.of_small,
        gradient.examples,
        gradient.mean_square,
    ]
    sketch = gradient.sketch.double()
    return torch.cat([torch.tensor(numbers, dtype=torch.float64, device=sketch.device), sketch])


class WorkerAgreement:
    """Compares the workers of a run, one monitored step after the other.

    Args:
        window: monitored steps that ratios are over.
        epoch: its optimizer steps; None where unknown.
    """

    def __init__(self, window: int, epoch: int | None):
        self._window, self._epoch = window, epoch
        self._losses, self._norms = ChangeWithin(window), ChangeWithin(window)
        self._log_norms = ChangeWithin(window)
        self._noise = NoiseWithin(window)
        self._directions = Directions(window)
        self._steps, self._known = 0, False  # those with a direction, and whether one had an expected one

    def update(self, everybody: Tensor, apart: bool) -> tuple[dict[str, float], dict[str, Any]]:
        """Take in a step.

        Args:
            everybody: what each worker packed. (N, 6 + k)
            apart: whether the workers' examples are known to differ.

        Returns:
            Figures by the names they are logged under, those that are known; and every worker's own.
        """
        losses, squares, small, of_small, examples, mean_square = everybody[:, :NUMBERS].cpu().T
        cosines = pairwise_cosines(everybody[:, NUMBERS:].cpu())
        figures = self._of_losses(losses, apart) | self._of_norms(squares.sqrt(), apart)
        figures |= self._of_directions(squares, small, of_small, examples, mean_square, cosines)
        return figures, {
            "losses": _rounded(losses),
            "norms": _rounded(squares.sqrt()),
            "cosines": [_rounded(row) for row in cosines],
        }

    def verdicts(self) -> dict[str, str]:
        """Return what is wrong, by kind: a sentence or two each; nothing in a healthy run."""
        found = {"same": self._directions.same()}
        if self._epoch is None or self._epoch >= EPOCH:
            found |= {
                "offset": offset_of_losses(self._losses, self._window, self._epoch),
                "norms": offset_of_norms(self._log_norms, self._epoch),
                "apart": self._directions.apart(self._noise),
            }
        return {kind: message for kind, message in found.items() if message is not None}

    def unknown_direction(self) -> str | None:
        """Say that the expected direction stayed unknown, and why, where a run was long enough to know it."""
        if self._known or self._steps < LEAST or not self._noise.steps:
            return None
        return (
            f"The expected direction of the workers' gradients stayed unknown in all {self._steps} monitored steps, "
            "so `consistency/direction` has nothing to be compared with: the gradients of single examples have so "
            "little in common that their mean cannot be told from zero. More examples a worker in each step would "
            "help. Where the data are noise, as random pairs are, nothing will."
        )

    def _of_losses(self, losses: Tensor, apart: bool) -> dict[str, float]:
        if not losses.isfinite().all():
            return {}
        self._losses.update(losses, apart)
        return _with_expected("loss_dispersion", dispersion(losses), self._losses.expected, self._losses.ratio)

    def _of_norms(self, norms: Tensor, apart: bool) -> dict[str, float]:
        if not norms.isfinite().all():
            return {}
        self._norms.update(norms, apart)
        if norms.min() > 0:
            self._log_norms.update(norms.log())
        return _with_expected("grad_norm_dispersion", dispersion(norms), self._norms.expected, self._norms.ratio)

    def _of_directions(
        self, squares: Tensor, small: Tensor, of_small: Tensor, examples: Tensor, mean_square: Tensor, cosines: Tensor
    ) -> dict[str, float]:
        if mean_square.isfinite().all():
            direction = float(mean_cosine(squares.sqrt(), mean_square[0].sqrt()))
        else:
            weights = torch.outer(squares.sqrt(), squares.sqrt())
            off = ~torch.eye(len(cosines), dtype=torch.bool)
            direction = float((weights * cosines)[off].sum() / weights[off].sum())
        if not math.isfinite(direction):  # no gradient, or no number, on some worker
            return {}
        if small.isfinite().all():
            norms = squares.sqrt()
            n = len(norms)
            products = direction * float((norms.sum().square() - squares.sum()) / (n * (n - 1)))
            self._noise.update(*(float(x.mean()) for x in (small, of_small, squares, examples)), products)
        expected = self._noise.expected_cosine(float(examples.mean()))
        self._directions.update(direction, expected, cosines)
        ratio = self._noise.ratio
        self._steps, self._known = self._steps + 1, self._known or expected is not None or ratio is not None
        return _with_expected("direction", direction, expected, ratio)


def _with_expected(name: str, value: float, expected: float | None, ratio: float | None) -> dict[str, float]:
    found = {"": value, "_expected": expected, "_ratio": ratio}
    return {f"consistency/{name}{ending}": figure for ending, figure in found.items() if figure is not None}


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{value:.6g}") for value in values.tolist()]
