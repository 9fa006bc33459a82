"""Seeded random projections of per-row gradients: inner products across batches, checkpoints and workers.

No process ever holds two gradients of different micro-batches at once. A projection of each, a few hundred numbers
drawn with the same seed everywhere, keeps their inner products, without bias. Probe m sees the matrix gradient G of a
linear layer through two vectors of random signs, the vector gradient h of a bias or a norm through one:

    f_m = sum over layers of u_m^T G v_m, or w_m . h        E[f_m(a) f_m(b)] = <a, b>

and for G = sum_t g_t x_t^T, u^T G v = sum_t (u . g_t)(x_t . v) costs t (i + o) a probe and needs no matrix at all. The
probes of a parameter follow from its name and the seed: every process, backend and run draws the same.

>>> torch.manual_seed(0); a, b = torch.randn(2, 4096)
>>> estimate(*(torch.stack([a, b]) @ signs("layer.bias", "w", 4096, 4000, 0).float() / 4000**0.5))
... # (value, standard error) of a . b
"""

import hashlib

import torch
from torch import Tensor

from .errors import GradientRecordError


def signs(name: str, side: str, size: int, probes: int, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """Return random signs, the same wherever the arguments are the same. (size, probes) int8"""
    digest = hashlib.blake2b(f"{seed}/{side}/{name}".encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
    drawn = torch.randint(0, 2, (size, probes), generator=generator, dtype=torch.int8)
    return drawn.mul_(2).sub_(1).to(device)


def estimate(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return an inner product of two gradients, from their projections, and its standard error.

    Each probe is an independent, unbiased estimate: the spread over the probes is the error.

    Args:
        a, b: projections as `Recorder.projections` gives them. (..., k)

    Returns:
        The estimates and their standard errors, in the units of the product. (...) each
    """
    products = a.double() * b.double() * a.shape[-1]  # one estimate a probe
    return products.mean(-1), products.std(-1) / a.shape[-1] ** 0.5


class Probes:
    """The random signs of all parameters, drawn when first asked for.

    Args:
        number: of probes.
        seed: of the signs.
    """

    def __init__(self, number: int, seed: int):
        if isinstance(number, bool) or not isinstance(number, int) or number < 2:
            raise ValueError(f"`projections` must be a whole number of at least 2, or 0 for none; it is {number!r}.")
        self.number, self.seed = number, seed
        self._drawn: dict[tuple[str, str], Tensor] = {}

    def __call__(self, name: str, side: str, size: int, like: Tensor) -> Tensor:
        """Return one side's signs of a parameter, on the device of `like`. (size, k) int8"""
        drawn = self._drawn.get((name, side))
        if drawn is None or drawn.device != like.device:
            drawn = signs(name, side, size, self.number, self.seed, like.device)
            self._drawn[name, side] = drawn
        return drawn


class Sketch:
    """The projections of the rows of one backward pass.

    Args:
        probes: of the recorder.
        rows: number of rows.
    """

    def __init__(self, probes: Probes, rows: int):
        self.probes, self.rows = probes, rows
        self._total: Tensor | None = None

    def add(self, part: Tensor) -> None:
        """Add a parameter's part. (r, k)"""
        part = part.detach().double()
        self._total = part if self._total is None else self._total + part

    def add_vectors(self, name: str, gradients: Tensor) -> None:
        """Add the rows' gradients of a bias or of a norm's weight. (r, d)"""
        gradients = gradients.float()
        self.add(gradients @ self.probes(name, "w", gradients.shape[1], gradients).float())

    def matrix(self) -> Tensor:
        """Return the projections, scaled so that their inner products estimate the gradients'. (r, k) float32

        Raises:
            GradientRecordError: if nothing was recorded, or a row's is not finite.
        """
        if self._total is None:
            raise GradientRecordError("No gradient was recorded: run a forward and a backward inside the context.")
        bad = (~self._total.isfinite()).any(1).nonzero()[:, 0].tolist()
        if bad:
            raise GradientRecordError(f"The gradient of row(s) {bad[:10]} of the batch is not finite.")
        return (self._total / self.probes.number**0.5).float()
