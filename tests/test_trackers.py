"""Trackers get every key that the run's log has: through transformers' own integration, here TensorBoard's."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import hf_gradkit
from hf_gradkit.reporting.runs import read_run
from pair_helpers import pairs, save_policy, train_dpo

OURS = ("weights/ess", "loss/unweighted", "logps/chosen_drift", "margins/temperature", "entanglement/", "gradients/")


def test_tensorboard_gets_the_keys_of_the_log(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    trainer = train_dpo(
        hf_gradkit.DPOTrainer,
        hf_gradkit.DPOConfig,
        save_policy(tmp_path / "policy", tokenizer),
        tmp_path / "run",
        pairs(16, "reward_margin"),
        max_steps=3,
        weighting="madpo",
        monitors=["entanglement", "gradient_statistics"],
        report_to="tensorboard",
    )
    trainer.save_state()
    run = read_run(tmp_path / "run")
    logged = {key for entry in run.history if "loss" in entry for key in entry} - {"step", "epoch"}
    assert all(any(key.startswith(name) for key in logged) for name in OURS)
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    assert {f"train/{key}" for key in logged} <= set(events.Tags()["scalars"])
    for key in ("weights/ess", "logps/chosen_drift"):
        steps, values = run.series(key)
        found = events.Scalars(f"train/{key}")
        assert [event.step for event in found] == steps
        assert [event.value for event in found] == pytest.approx(values)
