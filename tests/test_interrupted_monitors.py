"""Runs that end in the middle of a monitored step: no monitor stays on the model, and what comes next is as ever."""

import pytest
import torch
import trl

from helpers import parameter_gap, step_logs
from hf_gradkit import EntanglementCallback, GradientStatisticsCallback
from hf_gradkit.callbacks.worker_inputs import WorkerInputs
from pair_helpers import OURS, THEIRS, dpo, pairs, train_dpo

FUSED_HEAD = trl.trainer.utils._ChunkedLogProbFunction


def is_bare(model):
    """Whether nothing of ours is on a model, nor on TRL's fused head."""
    patched = any("forward" in vars(module) for module in model.modules() if module is not model)
    hooked = model._forward_pre_hooks or model._forward_hooks
    return not patched and not hooked and trl.trainer.utils._ChunkedLogProbFunction is FUSED_HEAD


def interrupt(trainer, where, error):
    """Let a trainer fail in the second micro-batch: on the way forward, or on the way back."""
    calls = []

    def count(*_):
        calls.append(1)
        if len(calls) == 2:
            raise error("stop here")

    def look(module, positional, output):
        if torch.is_grad_enabled():
            count() if where == "forward" else output.register_hook(count)

    handle = trainer.model.model.layers[0].mlp.register_forward_hook(look)
    with pytest.raises(error, match="stop here"):
        trainer.train()
    handle.remove()


@pytest.mark.parametrize(("where", "error"), [("forward", RuntimeError), ("backward", KeyboardInterrupt)])
@pytest.mark.parametrize("classes", [THEIRS, OURS], ids=["trl", "ours"])
def test_a_run_that_is_interrupted(classes, where, error, policy, tmp_path):
    """Our trainers take the monitors off at once, TRL's when the model is trained again; and all is as ever."""
    options = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "max_steps": 2}
    plain = train_dpo(*classes, policy, tmp_path / "plain", pairs(26), **options)
    expected = dpo(*classes, policy, tmp_path / "whole", pairs(26), **options)
    expected.add_callback(EntanglementCallback())
    expected.train()
    first = dpo(*classes, policy, tmp_path / "a", pairs(26), **options)
    first.add_callback(EntanglementCallback(observe=True))
    first.add_callback(GradientStatisticsCallback(trainer=first))
    interrupt(first, where, error)
    assert is_bare(first.model) == (classes is OURS)
    assert first.evaluate(first.train_dataset)["eval_loss"] > 0
    again = dpo(*classes, first.model, tmp_path / "b", pairs(26), **options)  # as in a notebook
    again.add_callback(EntanglementCallback())
    again.train()
    assert is_bare(first.model)
    assert parameter_gap(plain, again) < 1e-6
    for name in ("entanglement/cosine", "entanglement/chosen_norm"):
        assert step_logs(again, name) == pytest.approx(step_logs(expected, name), rel=1e-4)
    first.train()
    assert is_bare(first.model)
    assert len(step_logs(first, "entanglement/cosine")) == len(step_logs(first, "gradients/norm_mean")) == 2


def test_an_error_of_one_monitor_takes_all_off(policy, tmp_path):
    class Failing(EntanglementCallback):
        def _take(self, args):
            raise RuntimeError("stop here")

    trainer = dpo(*THEIRS, policy, tmp_path, pairs(8))
    trainer.add_callback(GradientStatisticsCallback())
    trainer.add_callback(Failing())
    with pytest.raises(RuntimeError, match="stop here"):
        trainer.train()
    assert is_bare(trainer.model)


def test_a_training_step_that_was_put_on_the_trainer_comes_back(policy, tmp_path):
    trainer = dpo(*THEIRS, policy, tmp_path, pairs(8))
    own = trainer.training_step = lambda *positional: type(trainer).training_step(trainer, *positional)
    WorkerInputs(trainer.model, trainer, pairs=True).close()
    assert trainer.training_step is own
    del trainer.training_step
    WorkerInputs(trainer.model, trainer, pairs=True).close()
    assert "training_step" not in vars(trainer)
    assert is_bare(trainer.model)
