"""What docs/migration.md says of the way from TRL and back: checkpoints go both ways, differences are as listed."""

import shutil
from pathlib import Path

import pytest
import torch
import trl
from datasets import Dataset

import hf_gradkit
from helpers import DEFAULTS, text_dataset, train
from pair_helpers import pairs
from pairs import save_reward_model

OURS = (hf_gradkit.SFTTrainer, hf_gradkit.SFTConfig)
THEIRS = (trl.SFTTrainer, trl.SFTConfig)
SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}


def weights(trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


@pytest.mark.parametrize(("first", "second"), [(OURS, THEIRS), (THEIRS, OURS)], ids=["back to TRL", "from TRL"])
def test_checkpoints_go_both_ways(first, second, tokenizer, tmp_path):
    whole = train(*THEIRS, tokenizer, tmp_path / "whole", text_dataset(), **SAVING)
    train(*first, tokenizer, tmp_path / "out", text_dataset(), **SAVING)
    checkpoint = str(tmp_path / "out" / "checkpoint-2")
    resumed = train(*second, tokenizer, tmp_path / "again", text_dataset(), resume=checkpoint, **SAVING)
    assert resumed.state.global_step == 4
    assert torch.equal(weights(resumed), weights(whole))


def test_subclasses_of_theirs():
    for name in ("SFTTrainer", "DPOTrainer", "RewardTrainer", "SFTConfig", "DPOConfig", "RewardConfig"):
        assert issubclass(getattr(hf_gradkit, name), getattr(trl, name))


def test_resume_true_takes_the_last_whole_checkpoint(tokenizer, tmp_path):
    train(*OURS, tokenizer, tmp_path / "out", text_dataset(), **SAVING)
    broken = tmp_path / "out" / "checkpoint-4"
    (broken / "model.safetensors").unlink()
    resumed = train(*OURS, tokenizer, tmp_path / "out", text_dataset(), resume=True, **{**SAVING, "max_steps": 5})
    assert resumed.state.global_step == 5
    shutil.rmtree(tmp_path / "out")
    train(*THEIRS, tokenizer, tmp_path / "out", text_dataset(), **SAVING)
    (Path(tmp_path) / "out" / "checkpoint-4" / "model.safetensors").unlink()
    with pytest.raises(Exception):  # noqa: B017 - TRL takes the last folder, and fails to load it in its own words
        train(*THEIRS, tokenizer, tmp_path / "out", text_dataset(), resume=True, **{**SAVING, "max_steps": 5})


def test_an_empty_completion_in_reward_training(tokenizer, tmp_path):
    rows = [*pairs(8), {"prompt": "a", "chosen": "", "rejected": " b"}]
    data, model = Dataset.from_list(rows), str(save_reward_model(tokenizer, tmp_path / "model"))
    options = {**DEFAULTS, "max_steps": 1, "output_dir": str(tmp_path / "out")}
    trl.RewardTrainer(model, trl.RewardConfig(**options), train_dataset=data).train()  # takes it
    with pytest.raises(ValueError, match="8"):
        hf_gradkit.RewardTrainer(model, hf_gradkit.RewardConfig(**options), train_dataset=data)


def test_training_data_without_a_row(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="The training data has no rows"):
        train(*OURS, tokenizer, tmp_path / "ours", text_dataset(1).select([]))
    with pytest.raises(Exception) as raised:
        train(*THEIRS, tokenizer, tmp_path / "theirs", text_dataset(1).select([]))
    assert "no rows" not in str(raised.value)
