"""PLD: resampling by personal loss within a group, arXiv 2502.00348."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
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
        number = isinstance(temperature, (int, float)) and not isinstance(temperature, bool)
        if not number or not 0 < temperature < float("inf"):
            raise ValueError(f"`temperature` must be above 0 and finite, but it is {temperature!r}.")
        if not isinstance(plain_epochs, int) or isinstance(plain_epochs, bool) or plain_epochs < 0:
            raise ValueError(f"`plain_epochs` must be an integer of at least 0, but it is {plain_epochs!r}.")
        numbers = np.unique([str(name) for name in groups], return_inverse=True)[1]
        self._members = np.split(np.argsort(numbers, kind="stable"), np.cumsum(np.bincount(numbers))[:-1])
        self.pool, self.temperature, self.plain_epochs, self.seed = pool, temperature, plain_epochs, seed
        self._size = len(groups)
        self.reset()

    def __len__(self) -> int:
        return self._size

    def reset(self) -> None:
        """Forget all losses, and begin at epoch 0."""
        self.epoch = 0
        self._losses = np.full(len(self), np.nan)
        self._begun = -1  # the epoch whose order was drawn last
        self._known_then = self._losses.copy()  # the losses that it was drawn from

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
        """Say which epoch is drawn next; without it, epochs that came to their end are counted."""
        self.epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to draw the current epoch's order again, and the orders after it."""
        return {
            "epoch": self.epoch,
            "losses": torch.from_numpy(self._losses.copy()),
            "begun": self._begun,
            "known_then": torch.from_numpy(self._known_then.copy()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned.

        Raises:
            ValueError: for a state of another number of examples.
        """
        if len(state["losses"]) != len(self):
            raise ValueError(
                f"The sampler's state has losses of {len(state['losses'])} examples, and the data has {len(self)}."
            )
        self.epoch, self._begun = state["epoch"], state["begun"]
        self._losses, self._known_then = state["losses"].numpy().copy(), state["known_then"].numpy().copy()

    def __iter__(self) -> Iterator[int]:
        if self._begun != self.epoch:  # else an epoch that was begun before: its order is drawn again
            self._begun, self._known_then = self.epoch, self._losses.copy()
        rng = np.random.default_rng([self.seed, 7, self.epoch])
        order = np.arange(len(self))
        if self.epoch >= self.plain_epochs:
            order = np.concatenate([self._drawn(members, rng) for members in self._members])
        rng.shuffle(order)
        yield from order.tolist()
        self.epoch += 1

    def _drawn(self, members: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return as many members of a group as it has, drawn by their losses. (g,) -> (g,)"""
        pools = members[draw_subsets(len(members), min(self.pool, len(members)), rng)]  # (g, pool)
        losses = self._known_then[pools]
        known = np.isfinite(losses)
        means = np.where(known, losses, 0.0).sum(1) / np.maximum(known.sum(1), 1)
        logits = -np.where(known, losses, means[:, None]) / self.temperature
        # The largest of logits plus Gumbel noise is a draw from their softmax.
        taken = (logits + rng.gumbel(size=logits.shape)).argmax(1)
        return pools[np.arange(len(pools)), taken]


def draw_subsets(number: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return `number` random subsets of `size` of the integers below `number`, each as likely. (number, size) int64

    Floyd's method, for all subsets at once: the i-th draw is from one integer more than the one before, and where it
    was drawn already, that integer is taken, which cannot have been.
    """
    subsets = np.empty((number, size), dtype=np.int64)
    for place, last in enumerate(range(number - size, number)):
        drawn = rng.integers(0, last + 1, number)
        repeated = (subsets[:, :place] == drawn[:, None]).any(1)
        subsets[:, place] = np.where(repeated, last, drawn)
    return subsets
