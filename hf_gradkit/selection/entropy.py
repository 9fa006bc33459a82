"""Kozachenko and Leonenko's estimate of entropy from nearest neighbours: how widely points are spread."""

import math

import numpy as np
import torch


def knn_entropy(distances: np.ndarray, dimension: int, k: int) -> float:
    """Return the Kozachenko-Leonenko estimate of the differential entropy, in nats.

        H = psi(N) - psi(k) + log c_d + (d / N) sum_i log eps_i,    c_d = pi^(d/2) / Gamma(d/2 + 1)

    Scaling the points by s adds d log s. In many dimensions the estimate is biased, and more so with few points:
    compare it only between samples of the same size.

    Args:
        distances: eps_i, of each point to its k-th nearest other point. (N,)
        dimension: d, numbers of a point.
        k: which neighbour.

    Raises:
        ValueError: if a distance is 0, as with points that are there more than k times: their entropy is minus
            infinity. Remove the copies first.
    """
    distances = np.asarray(distances, dtype=np.float64)
    if not (distances > 0).all():
        raise ValueError(
            f"{int((distances <= 0).sum())} of {len(distances)} points lie on their neighbour number {k}, where the "
            "entropy has no finite estimate. Remove copies of points first."
        )
    n = len(distances)
    volume = dimension / 2 * math.log(math.pi) - math.lgamma(dimension / 2 + 1)
    digamma = torch.digamma(torch.tensor([n, k], dtype=torch.float64)).tolist()
    return float(digamma[0] - digamma[1] + volume + dimension * np.log(distances).mean())
