"""The running window, the warm-up, and the options that say which examples are compared."""

import math

import pytest
import torch

from hf_gradkit.weighting import Comparison, LinUpper, LossRecord, RunningWindow, build_weighting


def weigh(window, losses, method=None):
    losses = torch.tensor(losses, dtype=torch.float64)
    return window.weigh(method or LinUpper(temperature=0.4), losses, torch.ones(len(losses), dtype=torch.bool))


def test_one_example_at_a_time_is_compared_with_the_window():
    window = RunningWindow(8)
    for loss in (1.0, 1.0, 1.0):
        weigh(window, [loss])
    easy, _ = weigh(window, [0.1])
    hard, compared = weigh(window, [3.0])
    assert easy.item() < 0.5 < 1.0 < hard.item()
    assert len(compared) == 5


def test_the_multiplier_is_the_formula_over_the_window():
    window = RunningWindow(4)
    weigh(window, [1.0, 2.0])
    weigh(window, [4.0])
    multipliers, compared = weigh(window, [3.0, 2.5])
    # Newest first: 3.0, 2.5 now, then 4.0, then 1.0 (the window keeps 4).
    losses = [3.0, 2.5, 4.0, 1.0]
    exps = [math.exp(min((2 * x - 5.0) / 3.0 + 1, 1) / 0.4) for x in losses]
    expected = [4 * e / sum(exps) for e in exps]
    assert compared.tolist() == pytest.approx(expected)
    assert (multipliers * window.mean).tolist() == pytest.approx(expected[:2])


def test_falling_losses_do_not_cut_the_learning_rate():
    torch.manual_seed(0)
    window, applied, raw = RunningWindow(512), [], []
    for step in range(200):
        losses = 4 - 0.05 * step + torch.rand(16, dtype=torch.float64)
        multipliers, _ = window.weigh(LinUpper(temperature=0.4), losses, torch.ones(16, dtype=torch.bool))
        applied.append(multipliers.mean().item())
        raw.append(multipliers.mean().item() * window.mean)
    assert sum(raw[100:]) / 100 < 0.5  # the hidden cut that the window alone would make
    assert sum(applied[100:]) / 100 == pytest.approx(1.0, abs=0.03)


def test_more_current_examples_than_the_window_holds_are_all_compared():
    window = RunningWindow(4)
    multipliers, compared = weigh(window, list(range(10)))
    assert len(multipliers) == len(compared) == 10
    assert compared.mean().item() == pytest.approx(1.0)
    assert window.losses.tolist() == [0.0, 1.0, 2.0, 3.0]


def test_repeated_examples_are_weighted_but_not_remembered():
    window = RunningWindow(8)
    window.weigh(LinUpper(), torch.tensor([1.0, 2.0, 1.0]), torch.tensor([True, True, False]))
    assert window.losses.tolist() == [1.0, 2.0]


def test_state_goes_through_a_file_and_continues_exactly(tmp_path):
    torch.manual_seed(0)
    first, losses = RunningWindow(32), torch.rand(20, 4, dtype=torch.float64)
    for row in losses[:10]:
        weigh(first, row.tolist())
    torch.save(first.state_dict(), tmp_path / "window.pt")
    second = RunningWindow(32)
    second.load_state_dict(torch.load(tmp_path / "window.pt", weights_only=True))
    for row in losses[10:]:
        assert torch.equal(weigh(first, row.tolist())[0], weigh(second, row.tolist())[0])


def test_warmup_steps_round_up():
    assert Comparison(warmup_ratio=0.05).warmup_steps(30) == 2
    assert Comparison(warmup_ratio=0.0).warmup_steps(30) == 0


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"scope": "epoch"}, "`scope` must be one of 'running', 'micro_batch', 'step', but it is 'epoch'"),
        ({"normalization": "example"}, "`normalization` must be one of 'token', 'sequence'"),
        ({"warmup_ratio": 1.0}, r"`warmup_ratio` must be a number in \[0, 1\), but it is 1.0"),
        ({"warmup_ratio": "5%"}, "`warmup_ratio` must be a number"),
        ({"window": 1}, "`window` must be a whole number of at least 2"),
        ({"window": 10.5}, "`window` must be a whole number"),
        ({"windw": 10}, r"has no option 'windw' for weighting='linupper'. Did you mean 'window'\?"),
    ],
)
def test_wrong_options(options, part):
    with pytest.raises(ValueError, match=part):
        build_weighting("linupper", options)


def test_one_dictionary_holds_the_options_of_both():
    method, comparison = build_weighting("linupper", {"temperature": 0.4, "scope": "step"})
    assert method == LinUpper(temperature=0.4)
    assert comparison == Comparison(scope="step")


def test_the_cap_holds_after_the_division_by_the_average():
    torch.manual_seed(0)
    window, largest = RunningWindow(512), []
    for step in range(60):
        losses = 4 - 0.05 * step + torch.rand(4, dtype=torch.float64)
        multipliers, _ = window.weigh(LinUpper(temperature=0.4, max_weight=1.2), losses, torch.ones(4).bool())
        largest.append(multipliers.max().item())
    assert window.mean < 0.8  # without the cut, multipliers would exceed the cap by 1 / mean
    assert max(largest) <= 1.2 + 1e-9


@pytest.mark.parametrize(
    ("method", "part"),
    [
        (lambda record: torch.ones(2), r"returned \(2,\) for 3 examples"),
        (lambda record: torch.tensor([1.0, -1.0, 3.0]), r"negative multipliers \(the smallest is -1\)"),
        (lambda record: record.losses / 0, "not finite"),
        (lambda record: [1, 1, 1], "returned list for 3 examples"),
    ],
)
def test_what_a_method_gives_is_checked(method, part):
    method.record_type = LossRecord
    with pytest.raises(ValueError, match=part):
        weigh(RunningWindow(8), [1.0, 2.0, 3.0], method)
