"""What scores say: ROC against counting, exact intervals, the bootstrap. The gate has tests of its own."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_gradkit.audit.discoverable import chance_among, extracted, samples_needed, suffix_probability
from hf_gradkit.audit.evaluation import Trial, auc, clopper_pearson, null_error, rate_at, roc
from hf_gradkit.audit.evaluation.intervals import resample
from hf_gradkit.audit.exposure import exposure
from hf_gradkit.audit.extraction_figures import suffix_figures
from hf_gradkit.audit.similarity import edit_distance, hamming, longest_common_run, recall_at_errors

# ---- ROC --------------------------------------------------------------------------------------------------------

few = st.lists(st.integers(0, 4), min_size=1, max_size=12)


@settings(deadline=None)
@given(few, few)
def test_auc_counts_pairs_and_halves_ties(members, others):
    pairs = [Fraction(1) if a > b else Fraction(1, 2) if a == b else Fraction(0) for a in members for b in others]
    scores = np.array(members + others, dtype=float)
    found = auc(scores, np.arange(len(scores)) < len(members))
    assert found == pytest.approx(float(sum(pairs) / len(pairs)))


@settings(deadline=None)
@given(few, few, st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]))
def test_true_positive_rate_is_the_best_threshold_that_is_allowed(members, others, alpha):
    best = 0.0
    for threshold in [*members, *others]:
        if sum(b >= threshold for b in others) <= alpha * len(others) + 1e-9:
            best = max(best, sum(a >= threshold for a in members) / len(members))
    scores = np.array(members + others, dtype=float)
    true, false = rate_at(*roc(scores, np.arange(len(scores)) < len(members)), alpha)
    assert true[0] == pytest.approx(best)
    assert false[0] <= alpha + 1e-9


def test_a_resample_is_what_repeating_the_rows_gives():
    rng = np.random.default_rng(0)
    scores, members = rng.integers(0, 9, 40).astype(float), rng.random(40) < 0.5
    counts = rng.integers(0, 3, 40)
    counts[[np.flatnonzero(members)[0], np.flatnonzero(~members)[0]]] = 1
    repeated = np.repeat(np.arange(40), counts)
    by_weight = roc(scores, members, counts[None].astype(float))
    by_rows = roc(scores[repeated], members[repeated])
    for alpha in (0.1, 0.3):
        assert rate_at(*by_weight, alpha)[0] == pytest.approx(rate_at(*by_rows, alpha)[0])
    trapezoid = [np.trapezoid(true[0], false[0]) for false, true in (by_weight, by_rows)]
    assert trapezoid[0] == pytest.approx(trapezoid[1])


def test_scores_that_order_nothing():
    with pytest.raises(ValueError, match="There are 2 members and 0 non-members"):
        auc(np.array([1.0, 2.0]), np.array([True, True]))
    with pytest.raises(ValueError, match="1 scores are not numbers"):
        auc(np.array([1.0, np.nan]), np.array([True, False]))


# ---- intervals --------------------------------------------------------------------------------------------------


def test_one_false_positive_in_a_thousand():
    low, high = clopper_pearson(1, 1000)
    assert low == pytest.approx(0.000025, abs=5e-7)
    assert high == pytest.approx(0.00556, abs=5e-6)
    assert clopper_pearson(0, 10)[0] == 0.0
    assert clopper_pearson(10, 10)[1] == 1.0
    with pytest.raises(ValueError, match="11 of 10 is no share"):
        clopper_pearson(11, 10)


@pytest.mark.parametrize(("k", "n"), [(0, 7), (1, 20), (5, 20), (19, 20)])
def test_exact_intervals_invert_the_binomial_tails(k, n):
    from math import comb

    def at_least(p, count):
        return sum(comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(count, n + 1))

    low, high = clopper_pearson(k, n)
    if k:
        assert at_least(low, k) == pytest.approx(0.025, abs=1e-9)
    assert 1 - at_least(high, k + 1) == pytest.approx(0.025, abs=1e-9)


def test_resamples_are_stratified_and_take_whole_documents():
    members = np.array([True] * 6 + [False] * 4)
    clusters = np.array([0, 0, 1, 1, 2, 2, 0, 3, 3, 4])  # document 0 is on both sides
    drawn = np.concatenate(list(resample(members, clusters, rounds=50, seed=0, rows=7)))
    assert drawn.shape == (50, 10)
    for i, j in ((0, 1), (2, 3), (4, 5), (7, 8)):
        assert (drawn[:, i] == drawn[:, j]).all()
    assert (drawn[:, :6].sum(1) == 6).all()  # three documents of two rows each
    assert (drawn[:, 0] != drawn[:, 6]).any()
    again = np.concatenate(list(resample(members, clusters, rounds=50, seed=0, rows=50)))
    assert (drawn.sum(1) > 0).all()
    assert again.shape == drawn.shape


def test_the_bootstrap_interval_covers_the_true_auc():
    """Scores of two normals one standard deviation apart: the AUC is .760, and 95 % intervals hold it mostly."""
    covered = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        members = np.arange(160) < 80
        scores = rng.normal(size=160) + members
        trial = Trial(members, np.arange(160), alphas=(), rounds=200, seed=seed)
        low, high = trial.evaluate({"score": scores})["score"]["auc_interval"]
        covered += low <= 0.7602 <= high
    assert covered >= 34


def test_scores_that_know_nothing():
    """4 standard errors at a fixed seed, and the standard error is that of many draws."""
    members = np.arange(150) < 60
    found = [auc(np.random.default_rng(seed).normal(size=150), members) for seed in range(300)]
    assert np.std(found) == pytest.approx(null_error(60, 90), rel=0.15)
    assert abs(found[0] - 0.5) < 4 * null_error(60, 90)


def test_figures_of_an_attack():
    rng = np.random.default_rng(0)
    members = np.arange(600) < 200
    scores = rng.normal(size=600) + 3.0 * members
    found = Trial(members, np.arange(600), rounds=100).evaluate({"score": scores, "backwards": -scores})
    figures, backwards = found["score"], found["backwards"]
    assert figures["leaks"]
    assert figures["tpr"]["0.01"]["supported"]
    assert figures["tpr"]["0.01"]["false_positives"] <= 4
    assert not figures["tpr"]["0.001"]["supported"]  # 400 non-members cannot show a rate of one in a thousand
    rate = figures["tpr"]["0.1"]
    assert rate["tpr"] * 200 == pytest.approx(rate["true_positives"])
    assert rate["exact"] == pytest.approx(clopper_pearson(rate["true_positives"], 200))
    assert rate["exact"][0] < rate["tpr"] < rate["exact"][1]
    assert backwards["auc"] == pytest.approx(1 - figures["auc"])
    assert backwards["leaks"]
    vertices = figures["roc"]
    assert vertices["fpr"][-1] == vertices["tpr"][-1] == 1.0
    assert len(vertices["fpr"]) <= 200
    assert np.trapezoid(vertices["tpr"], vertices["fpr"]) == pytest.approx(figures["auc"], abs=0.01)


def test_the_difference_of_two_attacks_is_paired():
    rng = np.random.default_rng(0)
    members = np.arange(400) < 200
    scores = rng.normal(size=400) + members
    trial = Trial(members, np.arange(400), rounds=200)
    others = {"near": scores + 1e-3 * rng.normal(size=400), "noise": rng.normal(size=400)}
    found = trial.evaluate({"score": scores, **others}, baselines=("near", "noise"))
    assert set(found["near"]["over"]) == {"noise"}
    near, noise = found["score"]["over"]["near"], found["score"]["over"]["noise"]
    assert abs(near["auc"]) < 0.01
    assert near["interval"][1] - near["interval"][0] < 0.01  # unpaired, it would be about .12
    assert noise["interval"][0] > 0


# ---- extraction -------------------------------------------------------------------------------------------------


def test_samples_that_a_suffix_needs():
    assert samples_needed(0.01, 0.5) == 69
    assert samples_needed(0.001, 0.9) == 2302
    assert samples_needed(1.0, 0.99) == 1
    assert samples_needed(0.0, 0.5) == float("inf")
    for p_z in (0.5, 0.01, 0.003):
        for p in (0.1, 0.5, 0.9):
            n = samples_needed(p_z, p)
            assert extracted(np.array([p_z]), n, p)[0]
            assert n == 1 or not extracted(np.array([p_z]), n - 1, p)[0]


def test_the_chance_of_a_suffix():
    q = np.array([[0.5, 0.5, 1.0], [0.1, 0.0, 0.9]])
    assert suffix_probability(q).tolist() == [0.25, 0.0]
    assert chance_among(np.array([0.25, 0.0, 1.0]), 3).tolist() == pytest.approx([1 - 0.75**3, 0.0, 1.0])
    with pytest.raises(ValueError, match="needs n >= 1 and 0 < p <= 1, but n is 0"):
        extracted(np.array([0.5]), 0, 0.5)


def test_exposure():
    assert exposure(1.0, np.arange(2, 1025)) == 10.0  # the first of 1024
    assert exposure(2000.0, np.arange(1023)) == 0.0  # the last
    assert exposure(3.0, np.array([3.0])) == 0.0  # a tie counts for the worse rank


tokens = st.lists(st.integers(0, 3), max_size=9)


@settings(deadline=None)
@given(tokens, tokens)
def test_similarities(guess, truth):
    table = [[i + j if i * j == 0 else 0 for j in range(len(truth) + 1)] for i in range(len(guess) + 1)]
    for i in range(1, len(guess) + 1):
        for j in range(1, len(truth) + 1):
            substitution = table[i - 1][j - 1] + (guess[i - 1] != truth[j - 1])
            table[i][j] = min(substitution, table[i - 1][j] + 1, table[i][j - 1] + 1)
    assert edit_distance(guess, truth) == table[-1][-1]
    runs = {tuple(guess[i:j]) for i in range(len(guess)) for j in range(i + 1, len(guess) + 1)}
    runs &= {tuple(truth[i:j]) for i in range(len(truth)) for j in range(i + 1, len(truth) + 1)}
    assert longest_common_run(guess, truth) == max(map(len, runs), default=0)
    padded = [*guess, *[-1] * len(truth)]
    assert hamming(guess, truth) == sum(a != b for a, b in zip(padded, truth, strict=False))


def test_recall_at_errors():
    right = np.array([True, False, True, False, True])
    scores = np.array([5.0, 4.0, 3.0, 2.0, 1.0])
    assert recall_at_errors(scores, right, errors=1) == 0.2
    assert recall_at_errors(scores, right, errors=2) == 0.4
    assert recall_at_errors(scores, right, errors=3) == 0.6


def test_suffixes_that_no_number_of_samples_gives():
    """Half of them appear among more samples than an integer holds, as under a model that knows nothing of them."""
    found = {name: np.full((4, 12), 1e-5) for name in ("sampled", "greedy")}
    figures = suffix_figures({**found, "log_probs": np.full((4, 12), -11.5)}, np.ones(4, bool), (1,), (0.5,))
    assert figures["samples_for_half"]["half"] == pytest.approx(np.log(2) * 1e60, rel=1e-6)
