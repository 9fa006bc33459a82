"""MADPO's weights: worked numbers, identities, errors."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hf_gradkit
from hf_gradkit.weighting import madpo_weights
from hf_gradkit.weighting.madpo import MADPO


@pytest.mark.parametrize(("c_max", "largest", "at"), [(2.0, 1.206, 0.88), (3.0, 1.332, 0.69), (4.0, 1.418, 0.58)])
def test_largest_weight_and_where(c_max, largest, at):
    h = torch.linspace(-12, 12, 240001, dtype=torch.float64)
    w = madpo_weights(h, c_max=c_max)
    assert w.max().item() == pytest.approx(largest, abs=1e-3)
    assert h[w.argmax()].item() == pytest.approx(at, abs=0.01)
    assert (w > 0).all()
    assert (w < 2).all()


@pytest.mark.parametrize(("h", "c_max", "weight"), [(-4.4, 2.0, 3.1e-2), (-4.05, 4.0, 9e-5)])
def test_pairs_that_the_reward_model_disputes_hardly_count(h, c_max, weight):
    assert madpo_weights(torch.tensor([h], dtype=torch.float64), c_max=c_max).item() == pytest.approx(weight, rel=0.05)


def test_beyond_tau_the_dampening_is_small():
    h = torch.linspace(6.907, 60, 100001, dtype=torch.float64)
    assert 0.948 - 1e-3 < madpo_weights(h, tau=6.9).min().item() < 1


@pytest.mark.parametrize("c_min", [None, 0.4])
def test_the_formula_of_the_paper(c_min):
    h = torch.linspace(-4.0, 8.0, 49, dtype=torch.float64)
    low, c_max, steepness, tau = c_min or 1 / 3, 3.0, 2.5, 5.0
    c = low + (c_max - low) / (1 + (c_max - 1) / (1 - low) * torch.exp(steepness * (h.abs() - tau)))
    torch.testing.assert_close(madpo_weights(h, c_max, c_min, steepness, tau), torch.sigmoid(c * h) / torch.sigmoid(h))


def test_weights_of_one():
    tau = 6.907
    h = torch.tensor([0.0, tau, -tau, -tau - 1e-6, -50.0], dtype=torch.float64)
    assert madpo_weights(h, tau=tau).tolist() == pytest.approx([1.0] * 5, abs=1e-9)


@settings(deadline=None, max_examples=50)
@given(
    h=st.floats(0.001, 5.0),
    c_max=st.floats(1.01, 8.0),
    c_min=st.one_of(st.none(), st.floats(0.0, 0.99)),
    steepness=st.floats(0.2, 3.0),
)
def test_a_pair_and_its_mirror_keep_the_total_and_move_the_minimum(h, c_max, c_min, steepness):
    """s(h) w(h) + s(-h) w(-h) = 1, and the weighted loss is least at beta m = c(|h|) h, for |h| < tau."""
    both = torch.tensor([h, -h], dtype=torch.float64)
    options = {"c_max": c_max, "c_min": c_min, "steepness": steepness, "tau": 5.5}
    w = madpo_weights(both, **options)
    p = torch.sigmoid(both)
    assert (p * w).sum().item() == pytest.approx(1.0)
    target = MADPO(**options).coefficient(both[:1].abs()).item() * h
    m = torch.tensor(target, dtype=torch.float64, requires_grad=True)
    loss = -(p[0] * w[0] * torch.nn.functional.logsigmoid(m) + p[1] * w[1] * torch.nn.functional.logsigmoid(-m))
    (gradient,) = torch.autograd.grad(loss, m)
    assert gradient.item() == pytest.approx(0, abs=1e-9)


def test_the_mean_weight_is_one_for_a_calibrated_reward_model():
    torch.manual_seed(0)
    h = 2 * torch.randn(200_000, dtype=torch.float64)
    signs = torch.where(torch.rand_like(h) < torch.sigmoid(h), 1.0, -1.0)
    assert madpo_weights(h * signs).mean().item() == pytest.approx(1.0, abs=0.01)


def test_extreme_margins_are_finite():
    h = torch.tensor([-1e4, -700.0, -6.0, 700.0, 1e4])
    w = madpo_weights(h)
    assert torch.isfinite(w).all()
    assert w.dtype == torch.float32
    assert not madpo_weights(torch.ones(2, requires_grad=True)).requires_grad


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"c_max": 1.0}, "`c_max` must be above 1, but it is 1.0"),
        ({"c_min": 1.0}, r"`c_min` must be in \[0, 1\), but it is 1.0"),
        ({"c_min": -0.1}, "`c_min` must be in"),
        ({"steepness": 0.0}, "`steepness` must be above 0"),
        ({"tau": 0.0}, "`tau` must be above 0"),
        ({"tau": math.nan}, "`tau` must be above 0"),
        ({"tau": "7"}, "`tau` must be a number"),
    ],
)
def test_options_out_of_their_domain(options, part):
    with pytest.raises(ValueError, match=part):
        madpo_weights(torch.zeros(2), **options)


def test_margins_that_are_not_finite():
    with pytest.raises(ValueError, match=r"positions \[1\] are not"):
        madpo_weights(torch.tensor([0.0, float("nan")]))


def test_single_examples_are_no_pairs(tmp_path):
    with pytest.raises(ValueError, match="weighs preference pairs"):
        hf_gradkit.SFTConfig(str(tmp_path), weighting="madpo", use_cpu=True, bf16=False)
