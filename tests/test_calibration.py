"""One temperature for reward margins: worked numbers, what a fit must satisfy, and when there is none."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_gradkit.weighting import Calibration, build_weighting, fit_temperature, madpo_weights, margin_nll


def test_worked_number():
    """Three of four agree, all equally sure: s(3 / t) = 3/4, so t = 3 / ln 3."""
    assert fit_temperature(torch.tensor([3.0, 3.0, 3.0, -3.0])) == pytest.approx(3 / math.log(3), rel=1e-9)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), factor=st.floats(0.05, 20.0))
def test_the_fit_is_the_minimum_and_scales_with_the_margins(seed, factor):
    generator = torch.Generator().manual_seed(seed)
    margins = torch.randn(50, generator=generator, dtype=torch.float64) * 3 + 1
    if not (margins > 0).any() or not (margins < 0).any() or margins.mean() <= 0:
        return
    t = fit_temperature(margins)
    assert fit_temperature(margins * factor) == pytest.approx(t * factor, rel=1e-6)
    best = margin_nll(margins / t)
    assert all(margin_nll(margins / (t * off)) >= best for off in (0.5, 0.95, 1.05, 2.0))


def test_margins_that_are_calibrated_keep_their_size():
    """Labels drawn with probability s(d): the margin is d or -d, and a calibrated model's mean weight is 1."""
    generator = torch.Generator().manual_seed(0)
    d = torch.randn(200_000, generator=generator, dtype=torch.float64) * 1.5
    agrees = torch.rand(len(d), generator=generator, dtype=torch.float64) < torch.sigmoid(d)
    h = torch.where(agrees, d, -d)
    assert fit_temperature(h) == pytest.approx(1.0, abs=0.02)
    assert fit_temperature(10 * h) == pytest.approx(10.0, abs=0.2)
    assert madpo_weights(h).mean().item() == pytest.approx(1.0, abs=0.01)
    assert madpo_weights(10 * h).mean().item() < 0.9  # overconfident: disputed pairs are all but dropped


@pytest.mark.parametrize(
    ("margins", "part"),
    [
        ([1.0, 2.0, 0.5], "not one speaks against its label.*gradkit reward --folds"),
        ([-1.0, -2.0, 0.5], "they speak against the labels.*33.3% agree"),
        ([0.0, 0.0], "all of them are zero"),
        ([], "no margins"),
        ([1.0, float("nan")], r"positions \[1\]"),
    ],
)
def test_no_temperature(margins, part):
    with pytest.raises(ValueError, match=part):
        fit_temperature(torch.tensor(margins))


def test_margins_of_any_size():
    for size in (1e-200, 1.0, 1e200):
        margins = torch.tensor([3.0, 3.0, 3.0, -3.0], dtype=torch.float64) * size
        assert fit_temperature(margins) == pytest.approx(size * 3 / math.log(3), rel=1e-9)


def test_a_public_reward_models_margins_make_madpo_dpo():
    """Margins of some ten logits lie beyond tau, where nothing changes; calibrated, the same margins weigh."""
    raw = torch.tensor([12.0, 30.0, 25.0, -15.0, 18.0, -22.0, 40.0, 11.0], dtype=torch.float64)
    assert madpo_weights(raw).tolist() == pytest.approx([1.0] * 8, abs=0.06)
    calibrated = madpo_weights(raw / fit_temperature(raw))
    assert (calibrated.max() - calibrated.min()).item() > 0.3


def test_madpo_is_built_with_its_calibration():
    method, calibration = build_weighting("madpo", {"c_max": 2.0, "calibrate": False, "tau_probability": 0.9})
    assert calibration == Calibration(calibrate=False)
    assert method.threshold == pytest.approx(math.log(9))
    assert method(type(method).record_type(torch.tensor([math.log(9.0)]))).item() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"c_max": 1.0}, "`c_max` must be above 1, but it is 1.0"),
        ({"c_min": 1.0}, r"`c_min` must be in \[0, 1\), but it is 1.0"),
        ({"tau": 0.0}, "`tau` must be above 0, but it is 0.0"),
        ({"steepness": -1.0}, "`steepness` must be above 0"),
        ({"tau_probability": 0.5}, r"`tau_probability` must be in \(0.5, 1\)"),
        ({"tau_probability": 0.9, "tau": 2.0}, "Both `tau`"),
        ({"calibrate": "yes"}, "`calibrate` must be true or false, but it is 'yes'"),
        ({"scope": "step"}, "no option 'scope' for weighting='madpo'"),
        ({"cmax": 2.0}, "no option 'cmax'.*Did you mean 'c_max'"),
    ],
)
def test_bad_options(options, part):
    with pytest.raises(ValueError, match=part):
        build_weighting("madpo", options)
