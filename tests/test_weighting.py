"""The maths of the weights: worked numbers, properties, errors."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_gradkit.weighting import METHODS, LinUpper, LossRecord, build_method, loss_weights
from hf_gradkit.weighting.base import cap, scale

LOSS_METHODS = ["linupper", "quadratic", "extremes"]


@pytest.mark.parametrize(
    ("strategy", "temperature", "largest", "smallest", "ess"),
    [
        ("linupper", 1.0, 1.225, 0.451, 0.930),
        ("quadratic", 1.0, 1.339, 0.493, 0.932),
        ("extremes", 1.0, 1.582, 0.582, 0.924),
        ("linupper", 0.4, 1.463, 0.120, 0.780),
        ("quadratic", 0.4, 1.831, 0.150, 0.754),
        ("extremes", 0.4, 2.724, 0.224, 0.679),
    ],
)
def test_worked_numbers_of_evenly_spread_losses(strategy, temperature, largest, smallest, ess):
    u = loss_weights(torch.linspace(1, 3, 20001, dtype=torch.float64), strategy, temperature)
    assert u.max().item() == pytest.approx(largest, abs=1e-3)
    assert u.min().item() == pytest.approx(smallest, abs=1e-3)
    assert (u.sum() ** 2 / (len(u) * u.square().sum())).item() == pytest.approx(ess, abs=1e-3)


def test_one_outlier_dominates_unless_quantiles_or_a_cap_take_that_power_away():
    losses = torch.cat([torch.linspace(1.9, 2.1, 127), torch.tensor([20.0])])
    assert loss_weights(losses, "linupper", 0.4)[-1].item() == pytest.approx(10.92, abs=5e-3)
    assert loss_weights(losses, "linupper", 0.4, low_quantile=0.05, high_quantile=0.95)[-1].item() < 1.6
    capped = loss_weights(losses, "linupper", 0.4, max_weight=2.0)
    assert capped[-1].item() == pytest.approx(2.0)
    assert capped.mean().item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("strategy", LOSS_METHODS)
def test_the_formula_written_out(strategy):
    losses = [0.3, 1.1, 0.7, 2.5]
    low, high = min(losses), max(losses)
    favour = {
        "linupper": lambda h: min(h + 1, 1),
        "quadratic": lambda h: 1 - h * h,
        "extremes": lambda h: abs(h),
    }[strategy]
    exps = [math.exp(favour((2 * x - high - low) / (high - low)) / 0.7) for x in losses]
    expected = [len(losses) * e / sum(exps) for e in exps]
    u = loss_weights(torch.tensor(losses, dtype=torch.float64), strategy, 0.7)
    assert u.tolist() == pytest.approx(expected)


@settings(deadline=None, max_examples=60)
@given(
    losses=st.lists(st.floats(0, 50), min_size=1, max_size=40),
    strategy=st.sampled_from(LOSS_METHODS),
    temperature=st.sampled_from([0.05, 0.4, 1.0, 100.0]),
    max_weight=st.sampled_from([None, 1.01, 1.5, 4.0]),
    quantiles=st.sampled_from([(0.0, 1.0), (0.05, 0.95)]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_multipliers_have_mean_one_and_bounds(losses, strategy, temperature, max_weight, quantiles, dtype):
    u = loss_weights(
        torch.tensor(losses, dtype=dtype, requires_grad=True), strategy, temperature, *quantiles, max_weight=max_weight
    )
    assert u.shape == (len(losses),)
    assert not u.requires_grad
    assert u.sum().item() == pytest.approx(len(losses), rel=1e-4)
    assert (u >= 0).all()
    if max_weight is None:
        assert u.max() <= u.min() * math.exp(1 / temperature) * 1.001
    else:
        assert u.max() <= max_weight * 1.0001


@settings(deadline=None, max_examples=60)
@given(values=st.lists(st.floats(0.001, 100), min_size=1, max_size=30), largest=st.floats(1.001, 5))
def test_the_cap_fills_water_up(values, largest):
    u = torch.tensor(values, dtype=torch.float64)
    u = u / u.mean()
    capped = cap(u, largest)
    assert capped.mean().item() == pytest.approx(1.0)
    assert capped.max() <= largest + 1e-9
    free = capped < largest - 1e-9
    if free.any():  # those below the cap keep their proportions
        ratio = (capped[free] / u[free]).tolist()
        assert max(ratio) == pytest.approx(min(ratio))


def test_equal_losses_and_single_examples_get_ones():
    for strategy in ["none", *LOSS_METHODS]:
        assert torch.equal(loss_weights(torch.full((5,), 1.3), strategy), torch.ones(5))
        assert loss_weights(torch.tensor([4.0]), strategy).item() == 1.0


def test_none_is_uniform_and_high_temperature_nearly_so():
    losses = torch.rand(50)
    assert torch.equal(loss_weights(losses, "none"), torch.ones(50))
    assert (loss_weights(losses, "linupper", 1e6) - 1).abs().max() < 1e-5


def test_quantile_scaling_clips_beyond_the_quantiles():
    h = scale(torch.arange(101, dtype=torch.float64), 0.1, 0.9)
    assert h[:11].eq(-1).all()
    assert h[90:].eq(1).all()
    assert h[50].item() == pytest.approx(0)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"temperature": 0}, "`temperature` must be above 0, but it is 0"),
        ({"temperature": -1.0}, "`temperature` must be above 0"),
        ({"temperature": float("nan")}, "`temperature` must be above 0"),
        ({"temperature": "hot"}, "`temperature` must be a number, but it is 'hot'"),
        ({"low_quantile": 0.9, "high_quantile": 0.1}, "0.9 and 0.1"),
        ({"low_quantile": 0.5, "high_quantile": 0.5}, "quantiles must satisfy"),
        ({"high_quantile": 1.5}, "quantiles must satisfy"),
        ({"max_weight": 1.0}, "`max_weight` must be above 1, but it is 1.0"),
        ({"max_weight": 0.5}, "`max_weight` must be above 1"),
    ],
)
@pytest.mark.parametrize("strategy", ["none", "linupper"])
def test_options_out_of_their_domain(strategy, options, part):
    with pytest.raises(ValueError, match=part.replace("(", r"\(")):
        loss_weights(torch.rand(4), strategy, **options)


def test_unknown_names_are_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'linuper'. Did you mean 'linupper'\? Known methods: 'none', 'linupper'"):
        loss_weights(torch.rand(4), "linuper")
    with pytest.raises(ValueError, match=r"no option 'temprature'. Did you mean 'temperature'\?"):
        build_method("linupper", {"temprature": 1.0})
    with pytest.raises(ValueError, match="'madpo' weighs preference pairs"):
        loss_weights(torch.rand(4), "madpo")
    with pytest.raises(ValueError, match="could not be imported"):
        build_method("no_such_module:Method", {})
    with pytest.raises(ValueError, match="is not a weighting method"):
        build_method("math:pi", {})


@pytest.mark.parametrize("losses", [[1.0, float("nan")], [1.0, float("inf")]])
def test_losses_that_are_not_finite(losses):
    with pytest.raises(ValueError, match=r"positions \[1\] are not"):
        loss_weights(torch.tensor(losses), "linupper")


@pytest.mark.parametrize("shape", [(0,), (2, 3), ()])
def test_losses_of_another_shape(shape):
    with pytest.raises(ValueError, match="must have shape"):
        loss_weights(torch.zeros(shape), "linupper")


def test_methods_are_frozen_dataclasses_with_options_as_fields():
    for method in METHODS.values():
        assert dataclasses.is_dataclass(method)
        assert method.__dataclass_params__.frozen
        assert method.__doc__
    assert LinUpper(temperature=0.4) == build_method("linupper", {"temperature": 0.4})
    assert LinUpper()(LossRecord(torch.tensor([0.0, 1.0]))).tolist() == pytest.approx([0.5379, 1.4621], abs=1e-4)


def test_the_cap_keeps_the_mean_when_weights_underflow():
    losses = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    u = loss_weights(losses, "quadratic", temperature=1e-3, max_weight=2)
    assert u.tolist() == pytest.approx([0.5, 2.0, 0.5])


@pytest.mark.parametrize("name", [False, None, {"linupper": {}}])
def test_names_that_are_no_text(name):
    with pytest.raises(ValueError, match="`weighting` must be a name such as 'linupper'"):
        build_method(name, {})
