"""beta-DPO: the batch's margins set its beta, and pairs with unusual margins are left out.

Letters: `A` margin of a pair, `m` of the policy, not multiplied by beta, detached (N,); `mu`, `sd` moving averages of
the mean and the standard deviation of A over micro-batches.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from .base import Adaptation, Objective, PreferenceRecord, dpo_losses

SMALLEST_BETA = 1e-3
SMALLEST_SPREAD = 1e-6  # of margins, below which they are alike


@dataclass(frozen=True)
class BetaDPO(Objective):
    """beta-DPO (arXiv 2407.08639), as its authors published it, with one correction.

        1. mu, sd   moving averages of mean(A) and std(A) over training micro-batches, this one included
        2. keep     int(keep_ratio n) pairs, drawn without replacement with p_i ~ exp(-((A_i - mu) / sd)^2 / 2)
        3. beta_b   max(1e-3, beta * (1 + alpha * (mean of kept A - mu)))
           loss     mean over the kept pairs of -log s(beta_b m_i)

    The correction: the averages start at 0 in the authors' code and stay near it for the first batches; here they are
    corrected for their start. n counts the pairs of all ranks, so the result is the same over ranks at an equal global
    micro-batch, but not over gradient accumulation: a micro-batch is what is compared.

    In evaluation every pair counts, beta is the configured one, and the averages stay as they are.

    Args:
        alpha: how strongly the batch moves beta; 0 leaves it (0.6 in the paper).
        decay: of the moving averages, in [0, 1) (0.9).
        keep_ratio: share of the pairs that are kept, in (0, 1]; at least one pair is (0.8).

    Raises:
        ValueError: naming the field and the value that is out of its domain.
    """

    alpha: float = 0.6
    decay: float = 0.9
    keep_ratio: float = 0.8

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ValueError(f"`{field.name}` of beta_dpo must be a number, but it is {value!r}.")
        if not 0 <= self.alpha < float("inf"):
            raise ValueError(f"`alpha` of beta_dpo must be at least 0, but it is {self.alpha}.")
        if not 0 <= self.decay < 1:
            raise ValueError(f"`decay` of beta_dpo must be in [0, 1), but it is {self.decay}.")
        if not 0 < self.keep_ratio <= 1:
            raise ValueError(f"`keep_ratio` of beta_dpo must be in (0, 1], but it is {self.keep_ratio}.")

    def preference(self, record: PreferenceRecord) -> Tensor:
        return dpo_losses(record)

    def adapter(self, beta: float, seed: int) -> "BetaAdapter":
        return BetaAdapter(self, beta, seed)


class BetaAdapter:
    """Steps 1 to 3 of [`BetaDPO`]. Fed the same margins, every rank comes to the same beta and the same pairs.

    Args:
        method: the options.
        beta: the configured beta.
        seed: of the draws.
    """

    def __init__(self, method: BetaDPO, beta: float, seed: int):
        self.method = method
        self.beta = beta
        self.seed = seed
        self._mean = self._spread = 0.0  # moving averages before the correction
        self._mass = self._spread_mass = 0.0  # share of each average that batches have filled
        self._batches = 0

    def adapt(self, margins: Tensor) -> Adaptation:
        """Take in the margins of one micro-batch of all ranks, and say what to train on, at which beta.

        Args:
            margins: A, in nats. (N,)
        """
        gaps = margins.detach().double().cpu()
        n, decay = len(gaps), self.method.decay
        self._mean = decay * self._mean + (1 - decay) * float(gaps.mean())
        self._mass = decay * self._mass + (1 - decay)
        if n > 1:  # a single pair has no spread
            self._spread = decay * self._spread + (1 - decay) * float(gaps.std())
            self._spread_mass = decay * self._spread_mass + (1 - decay)
        mean = self._mean / self._mass
        spread = self._spread / self._spread_mass if self._spread_mass else 0.0

        keep = self._draw(gaps, mean, spread, max(1, int(self.method.keep_ratio * n)))
        self._batches += 1
        beta = max(SMALLEST_BETA, self.beta * (1 + self.method.alpha * (float(gaps[keep].mean()) - mean)))
        figures = {"beta": beta, "kept": float(keep.double().mean()), "gap_mean": mean, "gap_std": spread}
        return Adaptation(beta, keep, figures)

    def _draw(self, gaps: Tensor, mean: float, spread: float, k: int) -> Tensor:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self._batches) % 2**63)
        log_p = -0.5 * ((gaps - mean) / spread).square() if spread > SMALLEST_SPREAD else torch.zeros_like(gaps)
        # The k largest of log p + Gumbel noise are a draw without replacement, also where p itself underflows.
        uniform = torch.rand(len(gaps), generator=generator, dtype=torch.float64).clamp(min=1e-300)
        noisy = log_p - torch.log(-torch.log(uniform))
        keep = torch.zeros(len(gaps), dtype=torch.bool)
        keep[noisy.topk(k).indices] = True
        return keep

    def state_dict(self) -> dict[str, Any]:
        """Return the averages and the number of batches drawn from, as plain numbers."""
        return {
            "mean": self._mean,
            "spread": self._spread,
            "mass": self._mass,
            "spread_mass": self._spread_mass,
            "batches": self._batches,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._mean, self._spread = state["mean"], state["spread"]
        self._mass, self._spread_mass = state["mass"], state["spread_mass"]
        self._batches = state["batches"]
