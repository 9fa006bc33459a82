"""Distances to the k-th nearest neighbour, exact, in chunks: memory is bounded whatever the number of points.

Letters: `N` points of `d` numbers; `B` points that are asked about at once; `k` neighbours, the point itself excluded.

Squared distances come from one matrix product a chunk, `|y|^2 - 2 x y`, which orders the neighbours of x but loses
the digits of small distances. It only finds candidates; their distances are computed again from differences, in
float64, so that the result does not depend on how the points were cut into chunks.
"""

import numpy as np
import torch
from torch import Tensor

QUERIES, POINTS = 1024, 8192  # of a chunk
BLOCK = 32
SLACK = 4  # candidates beyond k, since rounding may exchange neighbours that are equally near
EXACT_ROWS = {"cpu": 200_000, "cuda": 1_000_000}  # beyond which the exact search takes hours


def neighbour_distances(points: np.ndarray | Tensor, k: int) -> np.ndarray:
    """Return the Euclidean distance of each point to its k-th nearest other point. (N, d) -> (N,) float64

    2 d N^2 operations. Equal points have distance 0: pass each point once where that is not wanted.

    Raises:
        ValueError: if k is not an integer of at least 1, or there are not more than k points.
    """
    points = torch.as_tensor(points)
    check_k(k, len(points), "points")
    searcher = ExactSearch(points, k)
    parts = [searcher(range(start, min(start + QUERIES, len(points)))) for start in range(0, len(points), QUERIES)]
    return np.concatenate([distances[:, -1] for distances, _ in parts])


def check_k(k: int, number: int | None = None, what: str = "unique prompts") -> None:
    """Raise `ValueError` unless k is a number of neighbours and, where it is known, that of points is above it."""
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise ValueError(f"`k` must be an integer of at least 1, but it is {k!r}.")
    if number == 1:
        raise ValueError(
            f"`k` is {k}, but the number of {what} is 1, so that it has no neighbour. Leave the embedder out."
        )
    if number is not None and k >= number:
        raise ValueError(
            f"`k` is {k}, but there are only {number} {what}, so that not every one has a k-th neighbour. Set k below "
            f"{number}, or leave the embedder out."
        )


class ExactSearch:
    """Finds the nearest neighbours of points among all of them.

    Args:
        points: (N, d), on the device that searches.
        k: how many neighbours.
    """

    def __init__(self, points: Tensor, k: int):
        self.points, self.k = points.float(), k
        self.wanted = min(k + SLACK, len(points) - 1)
        self.squares = self.points.square().sum(1)  # (N,)

    def __call__(self, queries: range | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return distances and numbers of the k nearest others of each point that is asked about, nearest first.

        (B,) -> (B, k) float64, (B, k) int64
        """
        queries = torch.as_tensor(np.asarray(queries), device=self.points.device)
        x = self.points[queries]  # (B, d)
        best = torch.full((len(x), self.wanted), torch.inf, device=x.device)
        found = torch.zeros((len(x), self.wanted), dtype=torch.long, device=x.device)
        for start in range(0, len(self.points), POINTS):
            values, numbers = self._candidates(x, queries, start)
            merged = torch.cat([best, values], 1)
            best, order = merged.topk(self.wanted, dim=1, largest=False)
            found = torch.cat([found, numbers], 1).gather(1, order)
        return self._exact(x, found)

    def _candidates(self, x: Tensor, queries: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Return relative squared distances and numbers of the nearest points of one chunk. (B, c) each"""
        chunk = self.points[start : start + POINTS]
        squared = torch.addmm(self.squares[start : start + POINTS], x, chunk.T, alpha=-2)  # (B, C), less |x|^2
        inside = (queries >= start) & (queries < start + len(chunk))
        squared[inside.nonzero()[:, 0], queries[inside] - start] = torch.inf  # the point itself
        count = min(self.wanted, len(chunk))
        if len(chunk) < 4 * BLOCK * count:
            values, places = squared.topk(count, dim=1, largest=False)
            return values, places + start
        # The c smallest values lie in the c blocks with the smallest minima: only these need sorting.
        whole = len(chunk) // BLOCK * BLOCK
        blocks = squared[:, :whole].view(len(x), -1, BLOCK)
        chosen = blocks.amin(2).topk(count, dim=1, largest=False).indices  # (B, c)
        places = (chosen[:, :, None] * BLOCK + torch.arange(BLOCK, device=x.device)).flatten(1)
        rest = torch.arange(whole, len(chunk), device=x.device).expand(len(x), -1)
        places = torch.cat([places, rest], 1)
        values, order = squared.gather(1, places).topk(count, dim=1, largest=False)
        return values, places.gather(1, order) + start

    def _exact(self, x: Tensor, found: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return the k nearest of the candidates, by distances that are computed from differences."""
        distances = torch.empty(found.shape, dtype=torch.float64)
        for start in range(0, len(x), 128):  # (128, c, d) in float64 at a time
            rows = slice(start, start + 128)
            differences = x[rows, None].double() - self.points[found[rows]].double()
            distances[rows] = differences.square().sum(2).sqrt().cpu()
        distances, order = distances.sort(dim=1, stable=True)
        return distances[:, : self.k].numpy(), found.cpu().gather(1, order)[:, : self.k].numpy()
