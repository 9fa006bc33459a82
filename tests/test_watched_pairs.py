"""From rows of gradients to figures of pairs, by hand, and where figures go."""

import json

import pytest
import torch
from accelerate import PartialState

from hf_gradkit.callbacks.figures_log import FiguresLog
from hf_gradkit.callbacks.watched_pairs import COLUMNS, WatchedPairs, figures_of, row_coefficients
from hf_gradkit.gradients import GradientRecordError


def watched_pairs(g, signs, **more):
    """Pairs with these gradients, chosen rows first. (2m, d), (2m,)"""
    half = len(g) // 2
    return WatchedPairs(g.square().sum(1), (g[:half] * g[half:]).sum(1), signs, 1.0, **more)


def test_a_table_with_the_estimated_part_of_the_step():
    """What is in the micro-batch counts exactly, what others add by projections, with its error."""
    torch.manual_seed(0)
    m, d, k = 200, 40, 64
    g, others = torch.randn(2 * m, d, dtype=torch.float64), 8 * torch.randn(d, dtype=torch.float64)
    probes = (torch.randint(0, 2, (d, k)) * 2 - 1).double() / k**0.5
    signs = torch.tensor([-1.0, 1.0], dtype=torch.float64).repeat_interleave(m)
    along = 0.3 * (g @ g.T).sum(1)  # of a size with the others' part
    batch = watched_pairs(g, signs, along=along, projections=g @ probes)
    summed = g.sum(0) @ probes + others @ probes
    table = dict(zip(COLUMNS, batch.table(summed).T, strict=True))

    single = (g @ probes) * (others @ probes) * k  # one estimate a probe
    error = single.std(1) / k**0.5
    total = along + single.mean(1)
    assert torch.equal(table["chosen_rises"] > 0, total[:m] > 0)
    assert torch.equal(table["rejected_falls"] > 0, total[m:] > 0)
    unsure = total.abs() < 2 * error
    assert torch.equal(table["uncertain"] > 0, unsure[:m] | unsure[m:])
    relative = error / (summed.norm() * g.norm(dim=1))
    assert torch.allclose(table["step_error"], (relative[:m] + relative[m:]) / 2)
    for share in (table["uncertain"], table["chosen_rises"], table["rejected_falls"]):
        assert 0.1 < share.mean() < 0.9


def test_measures_are_of_pairs_that_have_a_gradient():
    """A pair beyond its margin counts as inactive, and in no mean of cosines or norms."""
    PartialState()
    g = torch.tensor([[3.0, 0], [0, 0], [3.0, 4.0], [0, 0]])
    figures, listed = figures_of([watched_pairs(g, torch.tensor([-1.0, 0, 1, 0]))])
    assert figures["entanglement/cosine"] == pytest.approx(-0.6)
    assert figures["entanglement/chosen_norm"] == 3.0
    assert figures["entanglement/rejected_norm"] == 5.0
    assert figures["entanglement/norm_ratio"] == pytest.approx(5 / 3)
    assert figures["entanglement/inactive"] == figures["entanglement/ideal"] == 0.5
    assert listed == [[pytest.approx(-0.6), pytest.approx(5 / 3, abs=1e-5)]]


def test_one_coefficient_a_row():
    gradient = torch.tensor([[0.0, -0.2, -0.2, 0.0], [0.3, 0.3, 0.3, 0.3], [0.0, 0.0, 0.0, 0.0]])
    assert row_coefficients(gradient).tolist() == pytest.approx([-0.2, 0.3, 0.0])
    gradient[1, 2] = 0.2
    with pytest.raises(GradientRecordError, match=r"tokens of row\(s\) \[1\] have different coefficients"):
        row_coefficients(gradient)


def test_figures_between_two_logs_are_averaged_into_that_of_training(tmp_path):
    """Without the trainer: a log of evaluation in between gets none of them."""
    log, history = FiguresLog("figures"), []
    log.start(str(tmp_path), 0, writes=True)
    for step, entry in ((1, {"eval_loss": 1.0}), (2, {"loss": 1.0}), (3, {"eval_loss": 2.0})):
        log.add(step, {"a": float(step), **({"b": 5.0} if step == 2 else {})}, {"details": step})
        history.append(entry)
        log.after_log(history)
    assert history == [{"eval_loss": 1.0}, {"loss": 1.0, "a": 1.5, "b": 5.0}, {"eval_loss": 2.0}]
    lines = [json.loads(line) for line in (tmp_path / "figures.jsonl").read_text().splitlines()]
    assert lines[1] == {"step": 2, "a": 2.0, "b": 5.0, "details": 2}


def test_an_answer_that_did_not_move_agrees_with_nothing():
    g = torch.tensor([[1.0, 0], [1.0, 0], [1.0, 0], [0, 1.0], [0, 1.0], [0, 1.0]])  # every pair goes as meant
    signs = torch.tensor([-1.0, -1, -1, 1, 1, 1])
    changes = torch.tensor([0.1, 0.1, 0.0, -0.1, 0.0, 0.0])
    table = dict(zip(COLUMNS, watched_pairs(g, signs, changes=changes).table(None).T, strict=True))
    assert table["agreement"][:2].tolist() == [1.0, 1.0]
    assert table["agreement"][2].isnan()


def test_two_monitors_of_one_file_are_refused(tmp_path):
    class Trainer:
        def log(self, logs):
            pass

    trainer = Trainer()
    FiguresLog("entanglement", trainer).start(str(tmp_path), 0, True)
    FiguresLog("gradient_statistics", trainer).start(str(tmp_path), 0, True)
    with pytest.raises(ValueError, match=r"Two monitors of this trainer write entanglement\.jsonl"):
        FiguresLog("entanglement", trainer).start(str(tmp_path), 0, True)
