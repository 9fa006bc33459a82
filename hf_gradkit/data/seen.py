"""Which rows an epoch has seen, one bit each, so that the padding of its last batch is not counted twice."""

import numpy as np
import torch
from torch import Tensor


class SeenItems:
    """A growing set of row numbers.

    Args:
        bits: what `state` returned, to go on from there.
    """

    def __init__(self, bits: Tensor | None = None):
        self._bits = np.zeros(0, dtype=np.uint8) if bits is None else bits.numpy().copy()

    def state(self) -> Tensor:
        """Return the set as a bit field. (bytes,) uint8"""
        return torch.from_numpy(self._bits.copy())

    def add(self, items: Tensor, examples: Tensor) -> Tensor:
        """Add the rows of a micro-batch; return which examples were not in the set before. (n,) -> (n,) bool

        A packed row holds several examples: neighbours with the same item and different examples are one row. A
        negative item is unknown, and always new.
        """
        new = torch.ones(len(items), dtype=torch.bool)
        row, of_row = -1, set()
        for position, (item, example) in enumerate(zip(items.long().tolist(), examples.long().tolist(), strict=True)):
            if item < 0:
                continue
            if item == row and example not in of_row:
                new[position] = new[position - 1]
            else:
                row, of_row = item, set()
                new[position] = self._insert(item)
            of_row.add(example)
        return new

    def _insert(self, item: int) -> bool:
        byte, bit = divmod(item, 8)
        if byte >= len(self._bits):
            self._bits = np.pad(self._bits, (0, max(1024, 2 * byte) - len(self._bits)))
        absent = not (self._bits[byte] >> bit) & 1
        self._bits[byte] |= 1 << bit
        return absent
