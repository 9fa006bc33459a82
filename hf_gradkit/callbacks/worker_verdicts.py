"""What the figures of data-parallel workers say is wrong: one sentence or two, or nothing in a healthy run."""

import math
from collections import deque

import torch
from torch import Tensor

from ..gradients.workers import ChangeWithin, NoiseWithin

SAME = 0.99  # cosine of workers beyond which their gradients are the same
FAR = 6.0  # standard errors beyond which a difference is none of chance
FEW = 5  # monitored steps before gradients are called the same
LEAST = 16  # monitored steps before a worker is called different
TIMES = 2.0  # how many times the others' a worker's gradient norm must be, or they its
EPOCH = 8  # steps that an epoch must have: of few batches, each worker's own may come again and again
MOST = 144  # steps beyond which a longer window needs no smaller difference: half of what a figure varies


class Directions:
    """Judges the cosines of the workers' gradients over a window.

    Args:
        window: monitored steps.
    """

    def __init__(self, window: int):
        self._known: deque[tuple[float, float | None]] = deque(maxlen=window)
        self._workers: deque[Tensor] = deque(maxlen=window)

    def update(self, direction: float, expected: float | None, cosines: Tensor) -> None:
        """Take in a step: the mean cosine, the healthy one, and those of all pairs. (N, N)"""
        self._known.append((direction, expected))
        self._workers.append((cosines.sum(1) - cosines.diagonal()) / (len(cosines) - 1))

    def same(self) -> str | None:
        """Say that all workers have the same gradient."""
        known = [found for found, healthy in self._known if healthy is None or healthy < SAME - 0.04]
        if len(known) < FEW or min(known[-FEW:]) <= SAME:
            return None
        return (
            f"The workers' gradients are the same (cosine above {SAME}) where those of different examples would "
            "not be: every worker seems to train on the same batch. Let accelerate prepare the data loader."
        )

    def apart(self, noise: NoiseWithin) -> str | None:
        """Say that the gradients point against each other, or have far less in common than they should."""
        if len(self._known) < LEAST:
            return None
        found = torch.tensor([direction for direction, _ in self._known], dtype=torch.float64)
        mean, error = float(found.mean()), float(found.std()) / len(found) ** 0.5
        ratio, shortfall = noise.ratio, noise.shortfall()
        if mean < -0.1 and mean < -FAR * error:
            figure = f"a mean cosine of {mean:.2f}"
        elif ratio is not None and shortfall is not None and ratio < 0.3 and shortfall > FAR:
            figure = f"a direction ratio of {ratio:.2f}"
        else:
            return None
        workers = torch.stack(list(self._workers)).nanmean(0)
        who = "the two workers" if len(workers) == 2 else f"worker {int(workers.argmin())} and the others"
        return (
            f"The gradients of {who} point apart: {figure} over the last {len(found)} monitored steps. Their losses, "
            "labels or parameters seem to differ, or something changes the gradients of a rank."
        )


def offset_of_losses(losses: ChangeWithin, window: int, epoch: int | None) -> str | None:
    """Say that a worker's loss lies off the others'; `epoch` has so many steps, None where unknown."""
    offset = losses.offset(LEAST, _independent(epoch))
    if offset is None or offset[1] <= FAR:
        return None
    return (
        f"The loss of worker {offset[0]} has lain {offset[1]:.0f} standard errors off the others' mean for "
        f"{window} monitored steps at most: its data are of another kind. Shuffle before sharding, and "
        "give all ranks the same data."
    )


def offset_of_norms(log_norms: ChangeWithin, epoch: int | None) -> str | None:
    """Say that a worker's gradient norm is far from the others'; `epoch` as for losses."""
    offset = log_norms.offset(LEAST, _independent(epoch))
    if offset is None or offset[1] <= FAR or abs(offset[2]) < math.log(TIMES):
        return None
    worker, _, difference = offset
    if log_norms.workers == 2 and difference < 0:  # of two, the larger is named
        worker, difference = 1 - worker, -difference
    return (
        f"The gradient norm of worker {worker} has been {math.exp(difference):.2g} times the others' over the last "
        "monitored steps: its loss is scaled differently, or its data are of another kind."
    )


def _independent(epoch: int | None) -> int:
    """Return how many steps may have batches of their own: without shuffling those of an epoch come again."""
    return MOST if epoch is None else min(MOST, epoch)
