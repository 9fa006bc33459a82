"""What faiss misses with the settings of `neighbours="faiss"`, on points that are easy for it and on others.

    pip install faiss-cpu
    python benchmarks/neighbours_recall.py --prompts gsm8k_train.jsonl.gz --column question     # a minute on one core
    python benchmarks/neighbours_recall.py --rows 100000 --sets sphere                          # 5 minutes

Sets: unit vectors around 200 centres (`centres`), without any (`sphere`: all directions equally likely, the hardest
case), and hashed TF-IDF of the prompts in a file. Every point's distance is found by both. Printed beside the recall
and inflation that a selection reports (over 1,000 points): by how many nats an entropy of all points from faiss's
distances is above that from the exact ones; the rank correlation of the two distances; and which share of the tenth of
all points that is farthest by the exact distances is also in that by faiss's.
"""

import argparse
import json
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from neighbours import make_rows

from hf_gradkit.data.loading import load_split
from hf_gradkit.selection.entropy import knn_entropy
from hf_gradkit.selection.nearest import find_distances
from hf_gradkit.selection.neighbours import neighbour_distances
from hf_gradkit.selection.summary import correlation, ranks
from hf_gradkit.selection.tfidf import HashedTfidf
from hf_gradkit.selection.work import Work


def on_sphere(rows: int, dimension: int) -> np.ndarray:
    """Return unit vectors in directions that are all equally likely. (rows, dimension) float32"""
    points = np.random.default_rng(0).standard_normal((rows, dimension))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def of_prompts(path: str, column: str) -> np.ndarray:
    """Return hashed TF-IDF of the different prompts in a file, points that coincide once. (U, 256) float32"""
    dataset = load_split(path, "train")
    if column != "prompt":
        dataset = dataset.rename_column(column, "prompt")
    with tempfile.TemporaryDirectory() as folder:
        return np.unique(HashedTfidf().of_dataset(dataset, Work(Path(folder))), axis=0)


def compare(points: np.ndarray, k: int) -> dict[str, Any]:
    """Return how faiss's distances differ from the exact ones, with the seconds (wall, CPU) of both."""
    with tempfile.TemporaryDirectory() as folder:
        faiss_seconds, (found, facts) = timed(find_distances, points, k, "faiss", 0, Work(Path(folder)))
    exact_seconds, exact = timed(neighbour_distances, points, k)
    tenth = len(points) // 10
    farthest = [set(np.argsort(-distances, kind="stable")[:tenth].tolist()) for distances in (exact, found)]
    dimension = points.shape[1]
    return {
        "rows": len(points),
        "dimension": dimension,
        **facts,
        "nats": knn_entropy(found, dimension, k) - knn_entropy(exact, dimension, k),
        "rank_correlation": correlation(ranks(exact), ranks(found)),
        "farthest_tenth_shared": len(farthest[0] & farthest[1]) / tenth,
        "seconds": {"faiss": faiss_seconds, "exact": exact_seconds},
    }


def timed(function, *arguments) -> tuple[dict[str, float], Any]:
    """Return the seconds (wall, and of this process's CPU time) that a function takes, and what it returns."""
    start, start_cpu = time.perf_counter(), time.process_time()
    result = function(*arguments)
    return {"wall": time.perf_counter() - start, "cpu": time.process_time() - start_cpu}, result


def main() -> None:
    """Run the benchmark and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--sets", nargs="+", choices=["centres", "sphere"], default=["centres", "sphere"])
    parser.add_argument("--prompts", help="a file of prompts as well")
    parser.add_argument("--column", default="prompt", help="of the file, that holds them")
    parser.add_argument("--threads", type=int, default=1, help="of the exact search; OMP_NUM_THREADS sets faiss's")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    makers = {"centres": make_rows, "sphere": on_sphere}
    figures: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/neighbours_recall.py", *sys.argv[1:]]),
        "k": options.k,
        "sets": {},
    }
    for name in [*options.sets, *(["prompts"] if options.prompts else [])]:
        if name == "prompts":
            points = of_prompts(options.prompts, options.column)
        else:
            points = makers[name](options.rows, options.dimension)
        facts = figures["sets"][name] = compare(points, options.k)
        print(
            f"{name:<8} {facts['rows']} x {facts['dimension']}: recall {facts['recall']:.3f}, inflation "
            f"{facts['inflation']:.4f}, entropy {facts['nats']:+.2f} nats, rank correlation "
            f"{facts['rank_correlation']:.3f}, of the farthest tenth {facts['farthest_tenth_shared']:.1%}; seconds of "
            f"CPU: faiss {facts['seconds']['faiss']['cpu']:.1f}, exact {facts['seconds']['exact']['cpu']:.1f}",
            flush=True,
        )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
        print(f"Figures: {options.json}")


if __name__ == "__main__":
    main()
