"""Adds up inner products of rows' gradients, layer by layer."""

import torch
from torch import Tensor

from .errors import GradientRecordError

MODES = ("projections", "norms", "pairs", "gram")  # each keeps what those before it do
BLOCK = 1 << 16  # products that are added up in float32 before float64 takes over


class Tally:
    """The inner products of one backward pass: each layer's share, kept apart until it is asked for.

    Args:
        mode: "gram" for all pairs of rows, "pairs" for norms and rows i with i + n / 2, "norms"; "projections" for
            none of them.
        rows: number of rows.
    """

    def __init__(self, mode: str, rows: int):
        self.mode, self.rows = mode, rows
        self._shares: dict[str, Tensor] = {}  # name -> (k,) float64, k products
        self._pairs: Tensor | None = None

    def pairs(self, device: torch.device) -> Tensor:
        """Return the row numbers whose inner products are kept. (k, 2)"""
        if self._pairs is None or self._pairs.device != device:
            rows = torch.arange(self.rows, device=device)
            if self.mode == "gram":
                self._pairs = torch.combinations(rows, with_replacement=True)
            else:
                self._pairs = torch.stack([rows, rows], dim=1)
                if self.mode == "pairs":
                    half = self.rows // 2
                    both = torch.stack([rows[:half], rows[half : 2 * half]], dim=1)
                    self._pairs = torch.cat([self._pairs, both])
        return self._pairs

    def add(self, name: str, gradients: Tensor) -> None:
        """Add a part of a parameter's per-row gradients: coordinates that were not added before. (r, k)"""
        whole = gradients.shape[1] // BLOCK * BLOCK
        products = self._products(gradients[:, :whole].unflatten(1, (-1, BLOCK))) if whole else 0.0
        if whole < gradients.shape[1]:
            products = products + self._products(gradients[:, None, whole:])
        self.add_products(name, products)

    def _products(self, blocks: Tensor) -> Tensor:
        """Return inner products of `pairs`, in float32 within a block and float64 beyond. (r, b, c) -> (k,)"""
        if self.mode == "norms":
            return blocks.float().square().sum(-1).double().sum(1)
        blocks = blocks.transpose(0, 1).float()  # (b, r, c)
        gram = torch.bmm(blocks, blocks.transpose(1, 2)).double().sum(0)  # (r, r)
        a, b = self.pairs(gram.device).T
        return gram[a, b]

    def add_cross(self, name: str, one: Tensor, other: Tensor) -> None:
        """Add what two parts of the same coordinates have in common: <a_r, b_s> + <b_r, a_s>. Both (r, k)"""
        cross = one.double() @ other.double().T
        a, b = self.pairs(cross.device).T
        self.add_products(name, cross[a, b] + cross[b, a])

    def add_products(self, name: str, products: Tensor) -> None:
        """Add inner products of `pairs`. (k,)"""
        products = products.detach().double()
        self._shares[name] = self._shares[name] + products if name in self._shares else products

    def matrix(self, names: list[str] | None = None) -> Tensor:
        """Return the Gram matrix; entries that the mode does not keep are NaN. (r, r) float64

        Raises:
            GradientRecordError: if a product is not finite, naming the row and the first layer in which it was.
        """
        shares = {name: s for name, s in self._shares.items() if names is None or name in names}
        if not shares:
            raise GradientRecordError("No gradient was recorded: run a forward and a backward inside the context.")
        total = torch.stack(list(shares.values())).sum(0)
        a, b = self.pairs(total.device).T
        if not total.isfinite().all():
            self._complain(shares, a)
        gram = total.new_full((self.rows, self.rows), float("nan"))
        gram[a, b] = gram[b, a] = total
        return gram

    def names(self) -> list[str]:
        """Return the parameters that have a share."""
        return list(self._shares)

    def _complain(self, shares: dict[str, Tensor], rows: Tensor) -> None:
        for name, share in shares.items():  # in the order of the backward pass
            bad = (~share.isfinite()).nonzero()[:, 0]
            if len(bad):
                named = sorted({int(rows[i]) for i in bad})
                raise GradientRecordError(
                    f"The gradient of row(s) {named[:10]} of the batch is not finite, first in {name!r}. Look at "
                    "these rows, or lower the learning rate."
                )
