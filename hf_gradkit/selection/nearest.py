"""Neighbours of a whole data set's prompts: exact on all processes, or faiss with its recall measured."""

import hashlib
import math
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate.logging import get_logger

from .._text import did_you_mean, listing
from ..scoring.processes import on_main
from .neighbours import EXACT_ROWS, QUERIES, ExactSearch
from .work import Work

logger = get_logger(__name__)

SEARCHES = ("auto", "exact", "faiss")
RECALL_QUERIES = 1000
ENOUGH_RECALL = 0.9


def check_search(search: Any) -> None:
    """Raise `ValueError` for an unknown way to search."""
    if search not in SEARCHES:
        raise ValueError(
            f"`neighbours` is {search!r}.{did_you_mean(search, SEARCHES)} Known ways to search: {listing(SEARCHES)}."
        )


def find_distances(points: np.ndarray, k: int, search: str, seed: int, work: Work) -> tuple[np.ndarray, dict]:
    """Return the distance of each point to its k-th nearest other one, and how it was found.

    Args:
        points: (N, d) float32
        k: below N.
        search: `"exact"`, `"faiss"`, or `"auto"`: exact up to 200,000 points, a million on a GPU, and faiss above.
        seed: of faiss's clusters and of the points on which its recall is measured.
        work: keeps the distances.

    Returns:
        Distances, (N,) float64; and `search`, with faiss also `recall` (share of the exact k neighbours found, over
        1,000 points) and `inflation` (mean of the distance found over the exact one, where that is not 0): misses make
        distances too large.

    Raises:
        ImportError: for `"faiss"` where it is not installed.
    """
    if search == "auto":
        search = "exact" if len(points) <= EXACT_ROWS.get(work.device.type, EXACT_ROWS["cpu"]) else _beyond(points)
    if search == "exact":
        return _exact(points, k, work), {"search": "exact"}
    return on_main(lambda: _faiss(points, k, seed, work))


def _beyond(points: np.ndarray) -> str:
    if _faiss_is_there():
        return "faiss"
    operations = 2 * points.shape[1] * len(points) ** 2
    logger.warning(
        f"Neighbours of {len(points)} prompts are searched exactly, which takes {operations:.1e} operations. To "
        'approximate them: pip install "hf-gradkit[faiss]".'
    )
    return "exact"


def _faiss_is_there() -> bool:
    try:
        import faiss  # noqa: F401
    except ImportError:
        return False
    return True


def import_faiss() -> Any:
    """Return the library.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "`neighbours` is 'faiss', which is not installed: pip install \"hf-gradkit[faiss]\", or set 'exact'."
        ) from error
    return faiss


def _exact(points: np.ndarray, k: int, work: Work) -> np.ndarray:
    content = hashlib.blake2b(np.ascontiguousarray(points).tobytes(), digest_size=16).hexdigest()

    @contextmanager
    def make():
        yield range(len(points)), _DistanceScorer(torch.from_numpy(points).to(work.device), k)

    identity = (content, points.shape, k)
    return work.score("neighbours", identity, ("distance",), len(points), make, QUERIES, unit="prompt")["distance"]


class _DistanceScorer:
    """Lets the engine search; items are numbers of points."""

    columns = ("distance",)

    def __init__(self, points: torch.Tensor, k: int):
        self.search = ExactSearch(points, k)

    def length(self, item: int) -> int:
        return 1

    def score(self, items: list[int]) -> dict[str, np.ndarray]:
        return {"distance": self.search(np.array(items))[0][:, -1]}


def _faiss(points: np.ndarray, k: int, seed: int, work: Work) -> tuple[np.ndarray, dict]:
    """Search an inverted file: points are put into clusters, and each query looks into the nearest of them."""
    faiss = import_faiss()
    points = np.ascontiguousarray(points, dtype=np.float32)
    clusters = max(1, min(int(4 * math.sqrt(len(points))), len(points) // 39))  # 39 points a cluster, faiss advises
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(points.shape[1]), points.shape[1], clusters)
    index.cp.seed = seed + 1
    index.train(points)
    index.add(points)
    index.nprobe = max(1, min(clusters, max(32, clusters // 16)))
    squared, numbers = index.search(points, k + 1)
    numbers, distances = _without_itself(squared, numbers)
    sample = np.random.default_rng([seed, 3]).permutation(len(points))[:RECALL_QUERIES]
    exact, found = ExactSearch(torch.from_numpy(points).to(work.device), k)(np.sort(sample))
    hits = [len(set(a) & set(b)) for a, b in zip(numbers[np.sort(sample)].tolist(), found.tolist(), strict=True)]
    theirs = distances[np.sort(sample), -1]
    facts = {
        "search": "faiss",
        "clusters": clusters,
        "probes": index.nprobe,
        "recall": float(np.sum(hits) / (k * len(sample))),
        "inflation": _inflation(theirs, exact[:, -1]),
    }
    said = f"faiss found {facts['recall']:.1%} of the exact neighbours of {len(sample)} prompts."
    if facts["recall"] < ENOUGH_RECALL:
        logger.warning(f"{said} Distances, and so diversity, are rough: set `neighbours` to 'exact'.")
    else:
        logger.info(said)
    return distances[:, -1], facts


def _inflation(found: np.ndarray, exact: np.ndarray) -> float:
    """Return the mean of the distance found over the exact one, of points with one above 0; 1 if there is none."""
    apart = exact > 0
    return float(np.mean(found[apart] / exact[apart])) if apart.any() else 1.0


def _without_itself(squared: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Take each point out of its own neighbours; where copies crowded it out, the last neighbour goes. (N, k) each"""
    own = numbers == np.arange(len(numbers))[:, None]
    own[~own.any(1), -1] = True
    keep = ~own
    shape = (len(numbers), numbers.shape[1] - 1)
    distances = np.sqrt(np.maximum(squared[keep].reshape(shape), 0.0)).astype(np.float64)
    if not np.isfinite(distances).all():
        raise ValueError(
            "faiss found fewer neighbours than `k` for some prompts, in the clusters that it looked into. Lower `k`, "
            "or set `neighbours` to 'exact'."
        )
    return numbers[keep].reshape(shape), distances
