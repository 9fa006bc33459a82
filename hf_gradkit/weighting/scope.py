"""Which examples are compared with each other: the micro-batch, a running window, or the whole optimizer step."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._text import check_whole_number, listing
from .base import multipliers_of

SCOPES = ("running", "micro_batch", "step")
NORMALIZATIONS = ("token", "sequence")


@dataclass(frozen=True)
class Comparison:
    """How the examples of a training run are compared, whatever the method.

    Args:
        scope: `"micro_batch"` compares the micro-batch of all ranks (the paper's code); `"running"` compares it with
            a window of recent examples, so that it works at batch size 1 (ours); `"step"` compares all examples of
            the optimizer step, over accumulation and ranks, for one more forward without gradient (ours).
        warmup_ratio: share of the training steps, at the start, that use no weights (the paper's code: 5 %).
        window: number of recent examples that scope `"running"` compares with (512 is our default).
        normalization: `"token"` weights the token mean that training optimises anyway; `"sequence"` makes the loss
            the weighted mean of the examples' own means.

    Raises:
        ValueError: naming the field and the value that is out of its domain.
    """

    scope: str = "running"
    warmup_ratio: float = 0.05
    window: int = 512
    normalization: str = "token"

    def __post_init__(self):
        for name, value, known in (
            ("scope", self.scope, SCOPES),
            ("normalization", self.normalization, NORMALIZATIONS),
        ):
            if value not in known:
                raise ValueError(f"`{name}` must be one of {listing(known)}, but it is {value!r}.")
        ratio = self.warmup_ratio
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 <= ratio < 1:
            raise ValueError(f"`warmup_ratio` must be a number in [0, 1), but it is {ratio!r}.")
        check_whole_number("window", self.window, 2)

    def warmup_steps(self, max_steps: int) -> int:
        """Return how many optimizer steps at the start of a run of `max_steps` use no weights."""
        return math.ceil(self.warmup_ratio * max_steps)


class RunningWindow:
    """The most recent losses, and the moving average of the multipliers that they gave (ours, not the paper's).

    While losses fall, the newest examples sit at the low end of the window and their mean multiplier drops below 1,
    a hidden cut of the learning rate. `weigh` therefore divides by a moving average of that mean, whose memory is as
    long as the window. The state is part of the training state: `state_dict` holds tensors and plain numbers only.

    Args:
        size: number of losses kept.
    """

    def __init__(self, size: int):
        self.size = size
        self.losses = torch.empty(0, dtype=torch.float64)
        self._average = 0.0  # moving average of the multipliers, before bias correction
        self._mass = 0.0  # share of the average that real examples have filled

    @property
    def mean(self) -> float:
        """The moving average of the multipliers, corrected for its start at zero; 1.0 before the first example."""
        return self._average / self._mass if self._mass > 0 else 1.0

    def weigh(self, method: Any, losses: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        """Weigh the current examples against the window with them in it.

        Args:
            method: maps a `LossRecord` to multipliers with mean 1.
            losses: mean losses of the current examples of all ranks. (n,)
            new: False where an example repeats one that the window has seen, as the padding of an epoch's last batch
                does; it is weighted like the others but not remembered. (n,)

        Returns:
            The multipliers of the current examples (n,), and those of everything compared (m,), m <= size or n.
        """
        losses = losses.to(self.losses)
        compared = torch.cat([losses, self.losses])[: max(self.size, len(losses))]
        all_multipliers = multipliers_of(method, compared)
        multipliers = all_multipliers[: len(losses)]
        keep = math.exp(-len(losses) / self.size)
        self._average = keep * self._average + (1 - keep) * float(multipliers.mean())
        self._mass = keep * self._mass + (1 - keep)
        self.losses = torch.cat([losses[new], self.losses])[: self.size]
        applied = multipliers / self.mean
        largest = getattr(method, "max_weight", None)
        # A method's cap holds for what an example gets, and so after the division.
        return applied if largest is None else applied.clamp(max=largest), all_multipliers

    def state_dict(self) -> dict[str, Any]:
        """Return the window (newest first) and the average."""
        return {"losses": self.losses, "average": self._average, "mass": self._mass}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; a window of another size keeps the newest losses."""
        self.losses = state["losses"][: self.size]
        self._average = state["average"]
        self._mass = state["mass"]
