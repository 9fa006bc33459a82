"""One temperature that makes reward margins Bradley-Terry logits.

Letters: `h` signed margin, reward of the chosen minus reward of the rejected answer (n,); `t` temperature; `a` 1 / t.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import check_finite

# 1 / t is looked for between these multiples of 1 / max(|h|).
SMALLEST, LARGEST = 1e-6, 1e6


@dataclass(frozen=True)
class Calibration:
    """How margins become logits before they are weighed (ours; the paper's code uses them as they are).

    Args:
        calibrate: divide the margins by the one temperature under which they explain the labels best; see
            [`fit_temperature`]. False takes them as they are.
    """

    calibrate: bool = True

    def __post_init__(self):
        if not isinstance(self.calibrate, bool):
            raise ValueError(f"`calibrate` must be true or false, but it is {self.calibrate!r}.")


def fit_temperature(margins: Tensor) -> float:
    """Return the t > 0 for which margins h / t have the largest Bradley-Terry likelihood of the labels.

    Minimises mean(-log s(a h)) over a = 1 / t, which is convex: its derivative is increasing, and its zero is found
    by bisection. With a calibrated reward model t is 1; one that is twice too sure of itself has t = 2. Tells nothing
    about a reward model that has seen these very pairs: then use margins of models that have not (cross-fitting).

    >>> fit_temperature(torch.tensor([3.0, 3.0, 3.0, -3.0])) # 3 of 4 right: s(3 / t) = 3/4
    2.7307...

    Args:
        margins: reward of the chosen minus reward of the rejected answer. (n,)

    Raises:
        ValueError: if the margins are not finite, or no temperature is best: the margins agree with every label, or
            on the whole with none.
    """
    h = check_finite(margins, "Margins").double()
    if not len(h):
        raise ValueError("There are no margins to fit a temperature on.")

    _check_fit(h)
    size = float(h.abs().max())
    unit = h / size
    low, high = SMALLEST, LARGEST
    for _ in range(100):  # each halves the interval's logarithm
        middle = (low * high) ** 0.5
        slope = float(-(unit * torch.sigmoid(-middle * unit)).mean())
        low, high = (middle, high) if slope < 0 else (low, middle)
    return size / (low * high) ** 0.5


def _check_fit(h: Tensor) -> None:
    """Raise `ValueError` where no temperature is best. (n,) float64"""
    if not h.any():
        raise ValueError(
            "No temperature can be fitted to the reward margins: all of them are zero. The reward model gives both "
            "answers of every pair the same reward; check that it was trained, and that its head was saved."
        )
    if h.mean() <= 0:  # the likelihood then falls from a = 0 on
        raise ValueError(
            f"No temperature can be fitted to the {len(h)} reward margins: they speak against the labels (mean "
            f"{h.mean().item():.4g}, {(h > 0).double().mean().item():.1%} agree). Check that the reward model fits "
            "this data and that chosen and rejected are not exchanged; calibrate=False in `weighting_kwargs` takes "
            "the margins as they are."
        )
    if not (h < 0).any():
        raise ValueError(
            f"No temperature can be fitted to the {len(h)} reward margins: not one speaks against its label, so "
            "the best temperature is 0. The reward model has probably learned these very pairs. Score each pair "
            "with a model that has not seen it (gradkit reward --folds 3), or set calibrate=False in "
            "`weighting_kwargs` to take the margins as they are."
        )


def margin_nll(margins: Tensor) -> float:
    """Return the mean Bradley-Terry negative log-likelihood of the labels, in nats. (n,) -> ()"""
    return float(-F.logsigmoid(check_finite(margins, "Margins").double()).mean())
