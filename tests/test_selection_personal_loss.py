"""PLD: how often an example is drawn, by enumeration of the pools."""

import itertools

import numpy as np
import pytest
from torch.utils.data import DataLoader

from hf_gradkit.selection import PersonalLossSampler


def share_by_hand(losses, pool: int, temperature: float) -> np.ndarray:
    """The probability that each member of a group is taken, over all pools."""
    share = np.zeros(len(losses))
    pools = list(itertools.combinations(range(len(losses)), min(pool, len(losses))))
    for members in pools:
        weights = np.exp(-np.array([losses[i] for i in members]) / temperature)
        share[list(members)] += weights / weights.sum() / len(pools)
    return share


def test_how_often_each_is_drawn():
    losses = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.05, 1.0])
    groups = ["a"] * 5 + ["b"] * 2
    sampler = PersonalLossSampler(groups, pool=3, temperature=0.2, plain_epochs=0)
    sampler.update(range(7), losses)
    counts = np.zeros(7)
    for _ in range(3000):
        drawn = np.bincount(list(sampler), minlength=7)
        assert drawn[:5].sum() == 5  # every group keeps its share
        counts += drawn
    expected = np.concatenate([5 * share_by_hand(losses[:5], 3, 0.2), 2 * share_by_hand(losses[5:], 3, 0.2)])
    assert counts / 3000 == pytest.approx(expected, abs=0.06)


def test_the_first_epochs_are_permutations():
    sampler = PersonalLossSampler(["a"] * 20, plain_epochs=2)
    sampler.update(range(20), np.arange(20))
    epochs = [list(sampler) for _ in range(3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(20))
    assert epochs[0] != epochs[1]
    assert len(set(epochs[2])) < 20
    assert np.mean(epochs[2]) < 8  # low losses


def test_unknown_losses_count_as_the_pools_mean():
    sampler = PersonalLossSampler(["a"] * 3, pool=3, plain_epochs=0, temperature=0.5)
    sampler.update([0, 1], [0.0, 1.0])
    counts = sum(np.bincount(list(sampler), minlength=3) for _ in range(4000)) / 12000
    assert counts == pytest.approx(share_by_hand([0.0, 1.0, 0.5], 3, 0.5), abs=0.02)


def test_the_same_order_on_every_process_and_after_a_resume():
    a, b = (PersonalLossSampler(list("aabb") * 5, plain_epochs=0, seed=3) for _ in range(2))
    for sampler in (a, b):
        sampler.update(range(20), np.linspace(0, 1, 20))
        list(sampler)
    assert list(a) == list(b)
    resumed = PersonalLossSampler(list("aabb") * 5, plain_epochs=0, seed=3)
    resumed.load_state_dict(a.state_dict())
    assert list(resumed) == list(a)


def test_it_finds_the_noise_while_a_model_learns():
    """A line is fitted by SGD; a fifth of the labels are noise, and are drawn less once their losses stay high."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(100)
    noisy = np.arange(100) % 5 == 0
    y = np.where(noisy, 5 * rng.choice([-1, 1], 100), 2 * x)
    sampler, slope, seen = PersonalLossSampler(["one user"] * 100), 0.0, np.zeros(100)
    for epoch in range(6):
        for batch in DataLoader(np.arange(100), batch_size=10, sampler=sampler):
            rows = batch.numpy()
            errors = slope * x[rows] - y[rows]
            sampler.update(rows, errors**2)
            slope -= 0.05 * 2 * (errors * x[rows]).mean()
            seen[rows] += epoch >= 2
    assert seen[noisy].mean() < 0.2 * seen[~noisy].mean()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": []}, "`groups` is empty"),
        ({"pool": 0}, "`pool` must be an integer of at least 1, but it is 0."),
        ({"temperature": 0}, "`temperature` must be above 0 and finite, but it is 0."),
        ({"plain_epochs": -1}, "`plain_epochs` must be an integer of at least 0, but it is -1."),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        PersonalLossSampler(**{"groups": ["a"], **options})


def test_a_loss_that_is_not_finite():
    with pytest.raises(ValueError, match=r"The losses of rows \[2\] are not finite"):
        PersonalLossSampler(["a"] * 3).update([0, 2], [1.0, float("nan")])
