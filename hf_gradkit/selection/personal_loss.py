"""PLD: resampling by personal loss within a group, arXiv 2502.00348."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler


class PersonalLossSampler(Sampler[int]):
    """Draws examples for an epoch such that those with a low loss, for their group, come more often.

    For each of a group's places in the epoch, a pool of its examples is drawn, and one of the pool is taken with
    probability softmax(-loss / temperature). So noise, whose loss stays high, is seen less, and every group keeps its
    share. It prefers LOW losses: the opposite of LinUpper. The first epochs are plain permutations.

    The order of an epoch is drawn when it begins, from the losses that are known then: processes that were told the
    same losses draw the same order. An example whose loss is not known counts as the mean of its pool.

    ```python
    sampler = PersonalLossSampler(dataset["user"])
    for epoch in range(epochs):
        for batch in DataLoader(dataset, batch_size=8, sampler=sampler):
            ...
            sampler.update(batch["row"], losses)  # on every process, the gathered ones
    ```

    Args:
        groups: of each example, such as a user or a source. (n,)
        pool: examples of a pool; the paper's 5.
        temperature: of the softmax, in the losses' unit; the paper's 0.1.
        plain_epochs: epochs without resampling at the start.
        seed: of the draws.

    Raises:
        ValueError: for no groups, or an option out of its domain.
    """

    def __init__(
        self, groups: Sequence[Any], pool: int = 5, temperature: float = 0.1, plain_epochs: int = 1, seed: int = 0
    ):
        if not len(groups):
            raise ValueError("`groups` is empty: it needs one name for each example.")
        if not isinstance(pool, int) or isinstance(pool, bool) or pool < 1:
            raise ValueError(f"`pool` must be an integer of at least 1, but it is {pool!r}.")
        if not 0 < temperature < float("inf"):
            raise ValueError(f"`temperature` must be above 0 and finite, but it is {temperature!r}.")
        if not isinstance(plain_epochs, int) or isinstance(plain_epochs, bool) or plain_epochs < 0:
            raise ValueError(f"`plain_epochs` must be an integer of at least 0, but it is {plain_epochs!r}.")
        numbers = np.unique([str(name) for name in groups], return_inverse=True)[1]
        self._members = [np.flatnonzero(numbers == number) for number in range(numbers.max() + 1)]
        self._losses = np.full(len(groups), np.nan)
        self.pool, self.temperature, self.plain_epochs, self.seed = pool, temperature, plain_epochs, seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self._losses)

    def update(self, rows: Sequence[int], losses: Sequence[float]) -> None:
        """Tell the losses of some examples, as they are now. (m,) (m,)

        Raises:
            ValueError: for a loss that is not finite, naming rows.
        """
        rows, losses = np.asarray(rows, dtype=np.int64), np.asarray(losses, dtype=np.float64)
        bad = rows[~np.isfinite(losses)]
        if len(bad):
            raise ValueError(f"The losses of rows {bad[:10].tolist()} are not finite.")
        self._losses[rows] = losses

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch is drawn next."""
        self.epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"epoch": self.epoch, "losses": self._losses.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.epoch, self._losses = state["epoch"], np.array(state["losses"], dtype=np.float64)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, 7, self.epoch])
        order = np.arange(len(self))
        if self.epoch >= self.plain_epochs:
            order = np.concatenate([self._drawn(members, rng) for members in self._members])
        rng.shuffle(order)
        self.epoch += 1
        yield from order.tolist()

    def _drawn(self, members: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return as many members of a group as it has, drawn by their losses. (g,) -> (g,)"""
        size = min(self.pool, len(members))
        taken = []
        for _ in members:
            pool = rng.choice(members, size, replace=False)
            losses = self._losses[pool]
            known = np.isfinite(losses)
            losses = np.where(known, losses, losses[known].mean() if known.any() else 0.0)
            logits = -(losses - losses.min()) / self.temperature
            weights = np.exp(logits)
            taken.append(rng.choice(pool, p=weights / weights.sum()))
        return np.array(taken, dtype=np.int64)
