"""Exact nearest neighbours against scikit-learn's brute force, and faiss against the exact ones.

    pip install scikit-learn faiss-cpu
    python benchmarks/neighbours.py                              # 20,000 rows of 384 numbers, a minute on one CPU core
    python benchmarks/neighbours.py --rows 100000 --turns 3      # a quarter of an hour
    python benchmarks/neighbours.py --rows 100000 --queries 10000 --turns 5      # neighbours of 10,000, among all rows
    python benchmarks/neighbours.py --rows 100000 --queries 1000 --turns 1 --faiss

All get the same rows: random unit vectors around 200 centres, as embeddings of prompts are. Ours and scikit-learn's
take turns in one process with as many threads each; ours ends with distances from differences in float64. Printed are
the medians of each one's times, the median and range of the ratio of the same turn's CPU times, the largest
difference between the two results, and with --faiss its time, its recall on 1,000 exact queries, and how much too
large its distances are. Other points, which are harder for faiss: benchmarks/neighbours_recall.py.
"""

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from hf_gradkit.selection.nearest import find_distances
from hf_gradkit.selection.neighbours import QUERIES, ExactSearch, neighbour_distances
from hf_gradkit.selection.work import Work


def make_rows(rows: int, dimension: int) -> np.ndarray:
    """Return unit vectors around 200 centres. (rows, dimension) float32"""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((200, dimension))
    points = centres[rng.integers(0, 200, rows)] + 0.7 * rng.standard_normal((rows, dimension))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def ours(points: np.ndarray, k: int, queries: int) -> np.ndarray:
    """Return our distances to the k-th nearest other row, of the first rows. (queries,)"""
    if queries == len(points):
        return neighbour_distances(points, k)
    search = ExactSearch(torch.from_numpy(points), k)
    starts = range(0, queries, QUERIES)
    return np.concatenate([search(range(start, min(start + QUERIES, queries)))[0][:, -1] for start in starts])


def theirs(points: np.ndarray, k: int, queries: int) -> np.ndarray:
    """Return scikit-learn's distances to the k-th nearest other row, of the first rows. (queries,)"""
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=k + 1, algorithm="brute", n_jobs=1).fit(points)
    return search.kneighbors(points[:queries])[0][:, -1]


def timed(function, *arguments) -> tuple[float, float, Any]:
    """Return a function's wall time and this process's CPU time in seconds, and what it returns."""
    start, start_cpu = time.perf_counter(), time.process_time()
    result = function(*arguments)
    return time.perf_counter() - start, time.process_time() - start_cpu, result


def main() -> None:
    """Run the benchmark and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--queries", type=int, help="of these first rows alone, among all; by default of every row")
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--faiss", action="store_true", help="faiss as well")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    points = make_rows(options.rows, options.dimension)
    queries = options.queries or options.rows
    times: dict[str, list[float]] = {"hf_gradkit": [], "scikit-learn": []}
    cpu: dict[str, list[float]] = {"hf_gradkit": [], "scikit-learn": []}
    with threadpool_limits(options.threads):
        for turn in range(options.turns):
            arms = [("hf_gradkit", ours), ("scikit-learn", theirs)]
            found = {}
            for name, search in arms if turn % 2 else arms[::-1]:
                seconds, cpu_seconds, found[name] = timed(search, points, options.k, queries)
                times[name].append(seconds)
                cpu[name].append(cpu_seconds)
        ratios = [own / other for own, other in zip(cpu["hf_gradkit"], cpu["scikit-learn"], strict=True)]
        figures: dict[str, Any] = {
            "command": shlex.join(["python", "benchmarks/neighbours.py", *sys.argv[1:]]),
            "rows": options.rows,
            "queries": queries,
            "dimension": options.dimension,
            "k": options.k,
            "threads": options.threads,
            "seconds": times,
            "cpu_seconds": cpu,
            "cpu_ratio": {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)},
            "largest_difference": float(np.abs(found["hf_gradkit"] - found["scikit-learn"]).max()),
        }
        if options.faiss:
            with tempfile.TemporaryDirectory() as folder:
                seconds, _, (_, facts) = timed(find_distances, points, options.k, "faiss", 0, Work(Path(folder)))
            figures["faiss"] = {"seconds_with_recall": seconds, **facts}
    for name, seconds in times.items():
        print(f"{name:<14}{statistics.median(seconds):8.2f} s, of the CPU {statistics.median(cpu[name]):.2f} s")
    print(f"{'ratio':<14}{statistics.median(ratios):8.3f}   {min(ratios):.3f} to {max(ratios):.3f}")
    print(f"largest difference of a distance: {figures['largest_difference']:.2g}")
    if options.faiss:
        print(f"faiss: {figures['faiss']}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
        print(f"Figures: {options.json}")


if __name__ == "__main__":
    main()
