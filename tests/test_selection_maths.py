"""The maths of selection against slow, plain computations and against values known in closed form."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_gradkit.selection import neighbours
from hf_gradkit.selection.entropy import knn_entropy
from hf_gradkit.selection.neighbours import ExactSearch, neighbour_distances
from hf_gradkit.selection.norms import draw, norm_probabilities, unbiased_weights
from hf_gradkit.selection.picking import farthest, highest, size_of
from hf_gradkit.selection.zscore import RobustScale, robust_z


def gaussian(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d))


def slow_distances(points: np.ndarray, k: int) -> np.ndarray:
    """Each pair by itself, in float64."""
    points = np.asarray(points, dtype=np.float64)
    return np.array([
        sorted(np.linalg.norm(points[i] - points[j]) for j in range(len(points)) if j != i)[k - 1]
        for i in range(len(points))
    ])  # fmt: skip


# ---- Z-scores -------------------------------------------------------------------------------------------------


def test_z_of_a_worked_example():
    # median 3, deviations 2 1 0 1 97, MAD 1
    assert robust_z([1, 2, 3, 4, 100]).tolist() == pytest.approx([-2 / 1.4826, -1 / 1.4826, 0, 1 / 1.4826, 3])


def test_z_of_a_gaussian_is_the_ordinary_one():
    values = 7 + 2 * gaussian(200_000, 1)[:, 0]
    scale = RobustScale(values)
    assert scale.median == pytest.approx(7, abs=0.02)
    assert scale.spread == pytest.approx(2, abs=0.02)


def test_z_under_ties_falls_back_to_the_mean_deviation():
    """Six of eight values are the same, so the median deviation is 0; the two others still count."""
    z = robust_z([5.0] * 6 + [6.0, 3.0])
    spread = math.sqrt(math.pi / 2) * 3 / 8
    assert z.tolist() == pytest.approx([0] * 6 + [1 / spread, -3])


@pytest.mark.parametrize("values", [[0.0] * 5, [2.5], [1e6, 1e6 + 0.01, 1e6], list(np.float32([0.1] * 4))])
def test_constant_values_get_zeros(values):
    assert RobustScale(values).is_constant
    assert robust_z(values).tolist() == [0.0] * len(values)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=50), st.floats(0.1, 10), st.floats(-10, 10))
def test_z_keeps_the_order_and_its_bounds(values, scale, shift):
    z = robust_z(values)
    assert np.isfinite(z).all()
    assert (np.abs(z) <= 3).all()
    assert all(za <= zb for (a, za), (b, zb) in itertools.product(zip(values, z, strict=True), repeat=2) if a <= b)


# ---- neighbours -----------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 60), st.integers(1, 8), st.integers(1, 6), st.integers(0, 9))
def test_neighbours_are_those_of_the_slow_way(n, d, k, seed):
    k = min(k, n - 1)
    points = gaussian(n, d, seed).astype(np.float32)
    assert neighbour_distances(points, k) == pytest.approx(slow_distances(points, k), rel=1e-6)


def test_chunks_and_blocks_change_nothing(monkeypatch):
    points = gaussian(700, 12).astype(np.float32)
    points[300:320] = points[:20]  # copies, in other chunks
    whole = neighbour_distances(points, 3)
    assert whole == pytest.approx(slow_distances(points, 3), rel=1e-6)
    for queries, chunk, block in [(1024, 8192, 2), (64, 300, 4), (7, 100, 3), (1, 699, 32)]:
        monkeypatch.setattr(neighbours, "QUERIES", queries)
        monkeypatch.setattr(neighbours, "POINTS", chunk)
        monkeypatch.setattr(neighbours, "BLOCK", block)
        assert (neighbour_distances(points, 3) == whole).all()


def test_near_copies_keep_their_digits():
    """A product of matrices in float32 alone would put distances below 3e-4 at anything between 0 and that."""
    points = gaussian(500, 64).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    points[1] = points[0] + np.float32(1e-5)
    points[2] = points[0]
    assert neighbour_distances(points, 1)[[0, 1, 2]].tolist() == pytest.approx([0, 8e-5, 0], rel=1e-2)
    _, numbers = ExactSearch(torch.as_tensor(points), 2)(range(3))
    assert [set(row) for row in numbers.tolist()] == [{1, 2}, {0, 2}, {0, 1}]
    assert [row[0] for row in numbers[[0, 2]].tolist()] == [2, 0]


@pytest.mark.parametrize(
    ("k", "message"), [(5, "`k` is 5, but there are only 5 points"), (0, "at least 1"), (True, "at least 1")]
)
def test_k_that_cannot_be(k, message):
    with pytest.raises(ValueError, match=message):
        neighbour_distances(gaussian(5, 2), k)


# ---- entropy --------------------------------------------------------------------------------------------------


def test_entropy_of_a_gaussian():
    """The check of the specification: 10,000 points of a 5-dimensional Gaussian, true entropy 7.095."""
    true = 2.5 * math.log(2 * math.pi * math.e)
    assert true == pytest.approx(7.095, abs=1e-3)
    distances = neighbour_distances(gaussian(10_000, 5), 5)
    assert knn_entropy(distances, 5, 5) == pytest.approx(true, abs=0.1)


def test_entropy_follows_the_scale():
    points = gaussian(500, 4)
    once, thrice = (knn_entropy(neighbour_distances(s * points, 3), 4, 3) for s in (1.0, 3.0))
    assert thrice - once == pytest.approx(4 * math.log(3), abs=1e-4)


def test_entropy_of_a_uniform_square():
    points = np.random.default_rng(0).random((4000, 2))
    assert knn_entropy(neighbour_distances(points, 3), 2, 3) == pytest.approx(0, abs=0.1)


def test_copies_have_no_entropy():
    points = gaussian(20, 3)
    points[4:7] = points[3]
    with pytest.raises(ValueError, match="4 of 20 points lie on their neighbour number 3"):
        knn_entropy(neighbour_distances(points, 3), 3, 3)
    assert math.isfinite(knn_entropy(neighbour_distances(np.unique(points, axis=0), 3), 3, 3))


# ---- how many, ties, the highest ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fraction", "count", "rows", "size"),
    [
        (0.1, None, 100, 10),
        (1.0, None, 7, 7),
        (1, None, 7, 7),
        (0.001, None, 7, 1),
        (0.5, None, 3, 2),
        (None, 3, 3, 3),
        (None, np.int64(3), 5, 3),
        (np.float32(0.5), None, 4, 2),
    ],
)
def test_sizes(fraction, count, rows, size):
    assert size_of(fraction, count, rows) == size


@pytest.mark.parametrize(
    ("fraction", "count", "message"),
    [
        (0, None, "`fraction` must be above 0 and at most 1, but it is 0."),
        (1.01, None, "`fraction` must be above 0 and at most 1, but it is 1.01."),
        (float("nan"), None, "`fraction` must be"),
        ("0.1", None, "`fraction` must be"),
        (True, None, "`fraction` must be"),
        (None, None, "Given: neither"),
        (0.1, 5, r"Given: both \(0.1 and 5\)"),
        (None, 0, "`count` must be an integer of at least 1, but it is 0."),
        (None, 11, "`count` asks for 11 rows, but the data has 10."),
    ],
)
def test_sizes_that_cannot_be(fraction, count, message):
    with pytest.raises(ValueError, match=message):
        size_of(fraction, count, 10)


def test_the_highest_with_ties_by_the_seed():
    scores = np.array([1.0, 3.0, 2.0, 3.0, 3.0, 0.0])
    taken = {tuple(sorted(highest(scores, 2, seed))) for seed in range(40)}
    assert taken == {(1, 3), (1, 4), (3, 4)}
    assert (highest(scores, 4, 7) == highest(scores + 1e-9 * np.arange(6), 4, 7)).all()
    assert highest(scores, 6, 0)[3:].tolist() == [2, 0, 5]


@pytest.mark.parametrize("unit", [1e-6, 1e-9, 1e6])
def test_the_unit_of_the_scores_is_no_matter(unit):
    """As learning rates are in Grad-Cos: their size must not leave the choice to the seed."""
    scores = np.random.default_rng(0).standard_normal(200)
    scores[50:100] = scores[:50]  # ties
    assert (highest(unit * scores, 40, 3) == highest(scores, 40, 3)).all()
    ruled_out = np.where(np.arange(200) < 20, np.nan, scores)
    allowed = np.isfinite(ruled_out)
    assert (highest(unit * ruled_out, 40, 3, allowed) == highest(scores, 40, 3, allowed)).all()
    points, distances, groups = gaussian(100, 3), np.random.default_rng(1).random(100), np.arange(200) % 100
    taken = [farthest(s * scores, distances, points, groups, lambda e, s=s: s * e, 40, 3)[0] for s in (1.0, unit)]
    assert (taken[0] == taken[1]).all()


def test_what_is_too_small_to_decide():
    """The last digits of figures in float32 leave the order to the seed; one score far away changes nothing."""
    exact = np.r_[np.full(30, 0.3), 1.0, -1.0]
    scores = exact + 1e-10 * np.arange(32)
    assert (highest(scores, 9, 5) == highest(exact, 9, 5)).all()
    assert highest(np.r_[np.arange(30.0), 1e12], 3, 5).tolist() == [30, 29, 28]
    assert highest(np.full(9, 0.1), 9, 1).tolist() != highest(np.full(9, 0.1), 9, 2).tolist()
    assert highest(np.array([1.0, np.nan]), 2, 0, np.zeros(2, dtype=bool)).tolist() == []


def test_rules_of_the_highest():
    scores, groups = np.array([9.0, 8, 7, 6, 5, 4]), np.array([0, 0, 0, 1, 1, 2])
    assert highest(scores, 3, 0, groups=groups, per_group=1).tolist() == [0, 3, 5]
    assert highest(scores, 4, 0, groups=groups, per_group=2).tolist() == [0, 1, 3, 4]
    allowed = np.array([False, True, True, True, False, True])
    assert highest(scores, 9, 0, allowed, groups, 1).tolist() == [1, 3, 5]


# ---- greedy ---------------------------------------------------------------------------------------------------


def slow_farthest(base, distances, points, groups, value, size):
    """Look at every row and every earlier pick in each step."""
    taken = []
    while len(taken) < size:
        scores = {}
        for i in range(len(base)):
            if i not in taken:
                away = [np.linalg.norm(points[groups[i]] - points[groups[j]]) for j in taken]
                scores[i] = base[i] + float(value(np.array([min([distances[groups[i]], *away])]))[0])
        taken.append(max(scores, key=scores.__getitem__))
    return taken


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 14), st.integers(0, 99))
def test_greedy_is_the_slow_way(n, seed):
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((n, 3)).astype(np.float32)
    groups = rng.integers(0, n, 2 * n)
    base, distances = rng.standard_normal(2 * n), rng.random(n) + 0.5
    scale = RobustScale(np.log1p(distances))
    value = lambda eps: 0.5 * scale(np.log1p(eps))  # noqa: E731
    taken, scores = farthest(base, distances, points, groups, value, n, seed)
    assert taken.tolist() == slow_farthest(base, distances, points, groups, value, n)
    assert (np.diff(scores) <= 1e-4).all()  # what is left can only lose


@pytest.mark.parametrize("seed", range(20))
def test_greedy_against_every_choice(seed):
    """Farthest-point sampling is within a factor 2 of the best possible spread (Gonzalez, 1985)."""
    points = gaussian(9, 2, seed).astype(np.float32)
    taken, _ = farthest(np.zeros(9), np.full(9, 1e9), points, np.arange(9), lambda eps: eps, 4, seed)

    def spread(rows) -> float:
        return min(np.linalg.norm(points[i] - points[j]) for i, j in itertools.combinations(rows, 2))

    best = max(spread(rows) for rows in itertools.combinations(range(9), 4))
    assert spread(taken) >= best / 2


def test_greedy_sees_two_alike_where_the_modular_score_does_not():
    points = np.array([[0.0, 0], [0.01, 0], [5, 0], [9, 9]], dtype=np.float32)
    base, distances = np.array([1.0, 0.9, 0.5, 0.0]), np.full(4, 5.0)
    assert highest(base + distances, 2, 0).tolist() == [0, 1]
    assert farthest(base, distances, points, np.arange(4), lambda eps: eps, 2, 0)[0].tolist() == [0, 2]


def test_rules_of_greedy():
    points, groups = gaussian(3, 2), np.array([0, 0, 0, 1, 1, 2])
    base = np.array([9.0, 8, 7, 6, 5, 4])
    arguments = (base, np.ones(3), points, groups, np.zeros_like)
    assert farthest(*arguments, 6, 0, per_group=1)[0].tolist() == [0, 3, 5]
    allowed = np.array([False, True, True, True, True, False])
    assert farthest(*arguments, 6, 0, allowed=allowed)[0].tolist() == [1, 2, 3, 4]
    assert farthest(*arguments, 6, 0, allowed=allowed, per_group=1)[0].tolist() == [1, 3]


# ---- sampling by gradient norms -------------------------------------------------------------------------------


def test_probabilities_by_hand():
    assert norm_probabilities([1.0, 3.0, 0.0], 0.6).tolist() == pytest.approx(
        [0.15 + 0.4 / 3, 0.45 + 0.4 / 3, 0.4 / 3]
    )
    assert norm_probabilities([1.0, 3.0], 0).tolist() == [0.5, 0.5]
    assert norm_probabilities([1.0, 3.0], 1).tolist() == [0.25, 0.75]


def test_weights_make_the_sample_unbiased():
    """The weighted mean over draws is the mean over all rows, in expectation: the sum over rows of p_i w_i f_i / 1."""
    rng = np.random.default_rng(0)
    norms, f = rng.exponential(size=50), rng.standard_normal(50)
    p = norm_probabilities(norms, 0.8)
    w = unbiased_weights(p)
    assert (p * w * f).sum() == pytest.approx(f.mean())
    rows = draw(p, 200_000, 3)
    error = 5 * (w * f)[rows].std() / math.sqrt(len(rows))
    assert (w[rows] * f[rows]).mean() == pytest.approx(f.mean(), abs=error)
    assert np.bincount(rows, minlength=50) / len(rows) == pytest.approx(p, abs=5e-3)
    assert (rows == draw(p, 200_000, 3)).all()


@pytest.mark.parametrize(
    ("norms", "share", "message"),
    [
        ([1.0, -1.0], 0.5, r"The gradient norms of rows \[1\] are negative"),
        ([1.0, float("nan")], 0.5, r"rows \[1\] are negative or not finite"),
        ([0.0, 0.0], 0.5, "All gradient norms are 0"),
        ([1.0, 2.0], 1.5, "`norm_share` must be in 0 to 1, but it is 1.5."),
    ],
)
def test_norms_that_cannot_be(norms, share, message):
    with pytest.raises(ValueError, match=message):
        norm_probabilities(norms, share)
