"""A resumed run equals the uninterrupted one: parameters, weights, window, averages, logs, example log."""

import pytest
import torch

import hf_gradkit
from helpers import NOT_RESUMED, StopError, crash_after, logs_without_timings, parameter_gap, text_dataset, train
from hf_gradkit.reporting import read_example_log
from hf_gradkit.trainers.mixin import STATE_FILE

OPTIONS = {
    "max_steps": 9,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "group_column": "source",
    "example_id_column": "uid",
    "example_log": True,
    "weighting": "linupper",
    "optim": "adamw_torch",
    "learning_rate": 1e-3,
}


@pytest.mark.parametrize("crash", [5, 9])  # in the middle of the first epoch (7 steps), and in the second
@pytest.mark.parametrize(
    "kwargs",
    [
        {"scope": "running", "temperature": 0.4, "warmup_ratio": 0.2, "window": 16},
        {"scope": "step", "temperature": 0.4, "warmup_ratio": 0.0},
    ],
)
def test_resumed_run_equals_the_uninterrupted_one(crash, kwargs, tokenizer, tmp_path):
    dataset = text_dataset(26, "source", "uid")
    options = {**OPTIONS, "weighting_kwargs": kwargs}
    classes = (hf_gradkit.SFTTrainer, hf_gradkit.SFTConfig, tokenizer)
    whole = train(*classes, tmp_path / "whole", dataset, trainer_kwargs={"dropout": 0.2}, **options)
    keywords = {"dropout": 0.2, "callbacks": [crash_after(crash)]}
    with pytest.raises(StopError):
        train(*classes, tmp_path / "cut", dataset, trainer_kwargs=keywords, **options)
    cut = train(*classes, tmp_path / "cut", dataset, trainer_kwargs={"dropout": 0.2}, resume=True, **options)

    assert parameter_gap(whole, cut) == 0
    states = [
        torch.load(tmp_path / name / "checkpoint-8" / STATE_FILE, weights_only=True) for name in ("whole", "cut")
    ]
    assert torch.equal(states[0]["window"]["losses"], states[1]["window"]["losses"])
    assert states[0]["window"]["average"] == states[1]["window"]["average"]
    whole_logs, cut_logs = (
        [{k: v for k, v in entry.items() if k not in NOT_RESUMED} for entry in logs_without_timings(trainer)[:-1]]
        for trainer in (whole, cut)  # the last entry holds the mean loss of what the process trained
    )
    assert whole_logs == cut_logs
    logs = [read_example_log(str(tmp_path / name)).to_pylist() for name in ("whole", "cut")]
    assert logs[0] == logs[1]
    assert len(logs[0]) == 9 * 4 - 2  # 26 rows: the seventh step of the epoch has two


def test_a_checkpoint_without_our_state_warns_and_starts_anew(tokenizer, tmp_path, caplog):
    dataset = text_dataset(26)
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    classes = (hf_gradkit.SFTTrainer, hf_gradkit.SFTConfig, tokenizer)
    train(*classes, tmp_path, dataset, **options)
    assert not (tmp_path / "checkpoint-2" / STATE_FILE).exists()
    trainer = train(
        *classes, tmp_path, dataset, resume=str(tmp_path / "checkpoint-2"), weighting="linupper", **options
    )
    assert f"holds no {STATE_FILE}" in caplog.text
    assert trainer.state.global_step == 4


def test_the_same_trainer_can_train_twice(tokenizer, tmp_path):
    """The second run starts with an empty window."""
    trainer = train(
        hf_gradkit.SFTTrainer,
        hf_gradkit.SFTConfig,
        tokenizer,
        tmp_path,
        text_dataset(),
        weighting="linupper",
        weighting_kwargs={"warmup_ratio": 0.0},
    )
    assert len(trainer._weigher.window.losses) == 16
    trainer.train()
    assert len(trainer._weigher.window.losses) == 16
