"""What one small step does to the chosen and the rejected answer of each pair (arXiv 2410.13828).

Letters: `A`, `B` gradients of the training loss that flow through a pair's chosen and rejected row; `s` sign of the
loss's derivative by the row's log-probability (DPO: -1 for chosen, +1 for rejected); `D` direction of the step, to be
subtracted: A + B of the pair itself, or the sum over the batch. All are read off the backward pass, so no formula of
the loss is needed, nor its weights. To first order and up to positive factors,

    chosen log-prob rises     -s_w <A, D> > 0
    rejected log-prob falls    s_l <B, D> > 0

>>> effect = Entanglement(*torch.tensor([[4.0], [1.0], [-1.8], [-1.0], [1.0]]))  # |A| = 2, |B| = 1, <A, B> = -1.8
>>> effect.cosine, effect.norm_ratio, effect.chosen_rises, effect.rejected_falls
(tensor([0.9000]), tensor([0.5000]), tensor([True]), tensor([False]))
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Entanglement:
    """The gradients of n pairs.

    Args:
        chosen_square, rejected_square: |A|^2 and |B|^2. (n,)
        product: <A, B>. (n,)
        chosen_sign, rejected_sign: s of each row; 0 where the loss does not depend on it. (n,)
        chosen_along, rejected_along: <A, D> and <B, D>; D is the pair's own A + B when None. (n,)
    """

    chosen_square: Tensor
    rejected_square: Tensor
    product: Tensor
    chosen_sign: Tensor
    rejected_sign: Tensor
    chosen_along: Tensor | None = None
    rejected_along: Tensor | None = None

    @property
    def active(self) -> Tensor:
        """Pairs that have a gradient; a hinge pair beyond its margin has none. (n,) bool"""
        return (self.chosen_square > 0) | (self.rejected_square > 0)

    @property
    def cosine(self) -> Tensor:
        """Cosine of the two log-probabilities' own gradients, the loss's signs removed; 0 if one vanishes. (n,)"""
        norms = self.chosen_square.sqrt() * self.rejected_square.sqrt()  # the product of the squares may underflow
        signs = self.chosen_sign * self.rejected_sign
        return torch.where(norms > 0, signs * self.product / norms.clamp(min=torch.finfo(norms.dtype).tiny), 0.0)

    @property
    def norm_ratio(self) -> Tensor:
        """|B| / |A|. (n,)"""
        return (self.rejected_square / self.chosen_square).sqrt()

    @property
    def chosen_rises(self) -> Tensor:
        """Whether the chosen answer becomes more likely. (n,) bool"""
        along = self.chosen_square + self.product if self.chosen_along is None else self.chosen_along
        return -self.chosen_sign * along > 0

    @property
    def rejected_falls(self) -> Tensor:
        """Whether the rejected answer becomes less likely. (n,) bool"""
        along = self.rejected_square + self.product if self.rejected_along is None else self.rejected_along
        return self.rejected_sign * along > 0

    def outcomes(self) -> dict[str, Tensor]:
        """Return what happens to each pair, by name. (n,) bool each"""
        up, down, active = self.chosen_rises, self.rejected_falls, self.active
        return {
            "chosen_rises": up & active,
            "rejected_falls": down & active,
            "ideal": up & down & active,
            "both_fall": ~up & down & active,
            "both_rise": up & ~down & active,
            "inverted": ~up & ~down & active,
            "inactive": ~active,
        }
