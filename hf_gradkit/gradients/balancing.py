"""Pulls of equal length on both answers of a pair, so that neither drags the other along (arXiv 2410.13828).

Letters: `A`, `B` gradients that flow through the chosen and the rejected row, ratio = |B| / |A|. With
alpha = sqrt(ratio) the rows pull with alpha A and B / alpha: both of length sqrt(|A| |B|), their ratio 1, the centre
of the band cos < ratio < 1 / cos in which a step raises the chosen and lowers the rejected answer. What is recorded
has the alpha of that moment in it already, which must be taken out again, or the balance swings to and fro.

>>> alphas(torch.tensor([2.0]), torch.tensor([8.0]))
tensor([2.])
"""

import torch
from torch import Tensor


def alphas(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Return each pair's alpha; 1 where one of the answers has no gradient.

    Args:
        chosen, rejected: norms of the gradients through each row. (n,) each
    """
    balanced = (rejected / chosen).sqrt()
    return torch.where((chosen > 0) & (rejected > 0), balanced, torch.ones_like(balanced))


class LogRatio:
    """A moving average of log(|B| / |A|), of the pairs as they would be without balancing.

    Args:
        decay: of the average, a recorded step.
    """

    def __init__(self, decay: float = 0.9):
        self.decay = decay
        self.value: float | None = None

    @property
    def alpha(self) -> float:
        """The alpha that the average asks for; 1 before the first record."""
        return 1.0 if self.value is None else float(torch.tensor(self.value / 2, dtype=torch.float64).exp())

    def update(self, recorded: float) -> None:
        """Take in a step's mean log ratio, recorded while `alpha` was active."""
        alpha = torch.tensor(self.alpha, dtype=torch.float64)
        plain = recorded + 2 * float(alpha.log())
        self.value = plain if self.value is None else self.decay * self.value + (1 - self.decay) * plain

    def state_dict(self) -> dict[str, float]:
        """Return what a resumed run needs."""
        return {} if self.value is None else {"log_ratio": self.value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from what `state_dict` returned."""
        self.value = state.get("log_ratio")
