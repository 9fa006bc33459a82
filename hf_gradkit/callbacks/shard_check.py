"""Whether the workers of an epoch see different examples, and all of them: by hashes of what each was given."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor


def row_hashes(ids: Tensor, mask: Tensor | None, documents: Tensor | None = None) -> Tensor:
    """Return a 64-bit hash of the tokens of each example, padding left out on whichever side. (n,) int64

    Args:
        ids: token ids, an example a row, or one flattened row. (n, t)
        mask: 1 on real tokens, or None for all; anything but (n, t) is not looked at.
        documents: of a flattened row, the example that each token belongs to, -1 for none. (t,)
    """
    if documents is not None:
        real = documents >= 0
        first = torch.zeros(int(documents.max()) + 1, dtype=torch.long, device=documents.device)
        counts = torch.bincount(documents[real])
        first[1:] = counts.cumsum(0)[:-1]
        place = torch.arange(int(real.sum()), device=ids.device) - first[documents[real]] + 1
        return first.new_zeros(len(first)).index_add_(0, documents[real], _mixed(place * 1_000_003 + ids[0][real]))
    usable = isinstance(mask, Tensor) and mask.shape == ids.shape
    mask = mask.to(torch.int64) if usable else torch.ones_like(ids, dtype=torch.int64)
    place = mask.cumsum(1)  # 1, 2, ... on real tokens
    return (_mixed(place * 1_000_003 + ids) * mask).sum(1)


def _mixed(x: Tensor) -> Tensor:
    """Scramble integers, with wrap-around (the finaliser of splitmix64)."""
    x = x.to(torch.int64)
    x = (x ^ (x >> 30)) * -4658895280553007687
    x = (x ^ (x >> 27)) * -7723592293110705685
    return x ^ (x >> 31)


ALIKE = 0.1  # share of a step's rows that several workers may have by chance


@dataclass(frozen=True)
class ShardFinding:
    """What is wrong with the shards.

    Attributes:
        examples: how many several workers have seen in this epoch.
        within: pairs of rows of one worker that are the same example.
        seen: rows of the epoch so far, all workers.
        same_place: share of batches that two workers had at the same time with the same rows.
    """

    examples: int
    within: int
    seen: int
    same_place: float

    @property
    def cause(self) -> str:
        """The likely cause, and what to do, as sentences."""
        if self.same_place > 0.9:
            return (
                "Workers are given the same batches at the same time: the data loader is not sharded. Let accelerate "
                "prepare it (Trainer does), and do not pass a sampler that ignores the rank."
            )
        return (
            "Each worker seems to shuffle with a seed of its own, so that some examples are repeated and others never "
            "seen. Give all ranks the same `data_seed` or `seed`, and set no seed from the rank."
        )


@dataclass(frozen=True)
class Lack:
    """Rows that an epoch did not see, though none was repeated between workers.

    Attributes:
        rows: how many, at least.
        cause: what was seen, and the likely cause, as sentences.
    """

    rows: int
    cause: str


class ShardCheck:
    """Compares what workers have seen within an epoch.

    Examples that the data holds twice are repeated in a healthy run as well, within a worker as often as between two,
    by the number of pairs of rows. Only repeats between workers beyond that count. Rows of an epoch's last step are
    never looked at: they are filled up with examples from its start.

    Args:
        workers: number of them.

    Attributes:
        apart: whether the workers had examples of their own in the last step, but for a few that the data hold twice.
    """

    def __init__(self, workers: int):
        self._workers = workers
        self.apart = False
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Forget what was seen."""
        self._seen: list[Counter[int]] = [Counter() for _ in range(self._workers)]
        self._steps = self._same = self._largest = 0
        self._blank = False  # whether a worker's rows of a step could not be told

    def add(self, hashes: Sequence[Sequence[int]]) -> None:
        """Take in a step: the hashes of the rows of each worker."""
        for seen, rows in zip(self._seen, hashes, strict=True):
            seen.update(rows)
        self._steps += 1
        self._largest = max(self._largest, sum(map(len, hashes)))
        self._blank |= not all(hashes)
        several = Counter(row for rows in hashes for row in set(rows))
        shared = sum(number > 1 for number in several.values())
        self.apart = all(hashes) and shared <= ALIKE * sum(map(len, hashes))
        first = sorted(hashes[0])
        self._same += all(sorted(rows) == first for rows in hashes[1:])

    @property
    def distinct(self) -> int:
        """Number of different examples seen."""
        return len(set().union(*self._seen))

    def finding(self) -> ShardFinding | None:
        """Return what is wrong, or None."""
        total = sum(self._seen, Counter())
        within = sum(n * (n - 1) // 2 for seen in self._seen for n in seen.values())
        across = sum(n * (n - 1) // 2 for n in total.values()) - within
        sizes = [seen.total() for seen in self._seen]
        pairs = sum(sizes) * (sum(sizes) - 1) // 2
        inner = sum(n * (n - 1) // 2 for n in sizes)
        if not inner or pairs == inner:
            return None
        expected = within * (pairs - inner) / inner
        if across < 5 or across <= expected + 5 * sqrt(expected + 1) + 3:
            return None
        shared = sum(sum(example in seen for seen in self._seen) > 1 for example in total)
        return ShardFinding(shared, within, sum(sizes), self._same / max(1, self._steps))

    def lack(self, rows: int) -> Lack | None:
        """Return what a whole epoch of data of so many rows did not see, or None.

        Up to a step's rows may be dropped at the end. Rows that the data hold twice come back on all workers alike:
        only a worker that sees far fewer different ones than another lacks some.
        """
        sizes = [seen.total() for seen in self._seen]
        if self._blank or not all(sizes):
            return None
        unseen = rows - sum(sizes)
        if unseen > max(self._largest, rows // 100):
            return Lack(
                unseen,
                f"In this epoch {unseen} of {rows} rows were given to no worker. Is the data sharded for more "
                "processes than train? A sampler or collator that leaves rows out on purpose looks the same.",
            )
        shares = [len(seen) / size for seen, size in zip(self._seen, sizes, strict=True)]
        least = min(range(self._workers), key=shares.__getitem__)
        again = int((max(shares) - shares[least]) * sizes[least])
        if shares[least] < max(shares) / 2 and again > self._largest:
            return Lack(
                again,
                f"In this epoch worker {least} was given {len(self._seen[least])} different examples in "
                f"{sizes[least]} rows, and another worker far more: it seems to go over a part of its shard "
                "again and again, while other rows are never seen. Look at its sampler.",
            )
        return None
