"""MADPO from a reward model: the trainer scores what has no margins, once, and will not mix two reward models."""

import copy
import json

import datasets
import pytest
import torch
import transformers
import yaml

import hf_gradkit
from helpers import step_logs
from hf_gradkit.cli import dpo as dpo_command
from hf_gradkit.scoring import PairScoring, RewardScorer, add_reward_margins
from hf_gradkit.weighting import fit_temperature
from launch import launch
from pair_helpers import pairs, save_policy, train_dpo
from pairs import reward_model, save_reward_model

OURS = (hf_gradkit.DPOTrainer, hf_gradkit.DPOConfig)


@pytest.fixture
def policy(tokenizer, tmp_path):
    return save_policy(tmp_path / "policy", tokenizer)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Scores of earlier tests are not found."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def labelled(path, n=26):
    """Return pairs of which the reward model agrees with three of four."""
    scored = add_reward_margins(pairs(n), path)
    rows = pairs(n).to_list()
    for i, margin in enumerate(scored["reward_margin"]):
        if (margin > 0) != (i % 4 > 0):
            rows[i]["chosen"], rows[i]["rejected"] = rows[i]["rejected"], rows[i]["chosen"]
    return datasets.Dataset.from_list(rows)


def test_missing_margins_are_scored_once(policy, tokenizer, tmp_path, monkeypatch):
    path = str(save_reward_model(tokenizer, tmp_path / "reward"))
    data = labelled(path)
    expected = torch.tensor(list(add_reward_margins(data, path)["reward_margin"]))
    forwards, forward = [], RewardScorer.score

    def counted(scorer, items):
        forwards.append(len(items))
        return forward(scorer, items)

    monkeypatch.setattr(RewardScorer, "score", counted)
    options = {"weighting": "madpo", "reward_model_name_or_path": path, "per_device_train_batch_size": 26}
    first = train_dpo(*OURS, policy, tmp_path / "a", data, max_steps=1, **options)
    assert forwards == []  # the call above has scored them
    assert step_logs(first, "margins/temperature")[0] == pytest.approx(fit_temperature(expected))
    assert step_logs(first, "weights/max")[0] > 1.05
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "another")
    again = train_dpo(*OURS, policy, tmp_path / "b", data, max_steps=1, **options)
    assert sum(forwards) == 2 * 26
    assert step_logs(again, "loss") == step_logs(first, "loss")


def test_a_model_in_memory(policy, tokenizer, tmp_path):
    path = str(save_reward_model(tokenizer, tmp_path / "reward"))
    options, data = {"weighting": "madpo", "max_steps": 2}, labelled(path)
    keywords = {"reward_model": reward_model(tokenizer), "reward_processing_class": tokenizer}
    live = train_dpo(*OURS, policy, tmp_path / "a", data, trainer_kwargs=keywords, **options)
    saved = train_dpo(*OURS, policy, tmp_path / "b", data, reward_model_name_or_path=path, **options)
    assert step_logs(live, "margins/temperature") == pytest.approx(step_logs(saved, "margins/temperature"), rel=1e-5)
    assert step_logs(live, "loss") == pytest.approx(step_logs(saved, "loss"), rel=1e-5)
    assert live._reward_model is None


def test_margins_of_another_reward_model(policy, tokenizer, tmp_path):
    path = str(save_reward_model(tokenizer, tmp_path / "reward"))
    other = str(save_reward_model(tokenizer, tmp_path / "other", seed=1))
    scored = add_reward_margins(labelled(path), path)
    options = {"weighting": "madpo", "max_steps": 1}
    train_dpo(*OURS, policy, tmp_path / "a", scored, reward_model_name_or_path=path, **options)
    with pytest.raises(ValueError, match="reward model") as error:
        train_dpo(*OURS, policy, tmp_path / "b", scored, reward_model_name_or_path=other, **options)
    assert str(tmp_path / "other") in str(error.value)


def test_margins_that_the_record_does_not_speak_of(policy, tokenizer, tmp_path, caplog):
    """Scored again under another name, the first margins are gone; changed ones are told from the record's."""
    one, two = (str(save_reward_model(tokenizer, tmp_path / f"reward-{i}", seed=i)) for i in (0, 1))
    again = add_reward_margins(add_reward_margins(labelled(one), one), two, column="rm")
    assert "reward_margin" not in again.column_names
    changed = again.add_column("reward_margin", [0.5 - i % 3 for i in range(26)])
    options = {"weighting": "madpo", "max_steps": 1, "reward_model_name_or_path": two}
    with pytest.raises(ValueError, match="are not the difference of 'reward_chosen' and 'reward_rejected'"):
        train_dpo(*OURS, policy, tmp_path / "a", changed, **options)
    unknown = changed.remove_columns(["reward_model", "reward_chosen", "reward_rejected"])
    options["weighting_kwargs"] = {"calibrate": False}
    train_dpo(*OURS, policy, tmp_path / "b", unknown, **options)
    assert "no record of what scored them" in caplog.text


def test_a_live_model_is_known_with_the_tokenizer_that_it_brings(tokenizer, tmp_path):
    folder = save_reward_model(tokenizer, tmp_path / "reward")
    live = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    before = PairScoring(pairs(4), live).key
    other = copy.deepcopy(tokenizer)
    other.chat_template += " "
    other.save_pretrained(folder)
    assert PairScoring(pairs(4), live).key != before
    assert PairScoring(pairs(4), live, tokenizer=tokenizer).key == before


def test_a_tokenizer_of_another_model(tokenizer, tmp_path):
    small = reward_model(tokenizer)
    small.resize_token_embeddings(100)
    with pytest.raises(ValueError, match="and the reward model knows 100: they do not belong together"):
        add_reward_margins(pairs(4), small, tokenizer=tokenizer)


def test_columns_of_the_scores_are_not_for_margins(tokenizer):
    with pytest.raises(ValueError, match="`column` is 'reward_model', the name of another column"):
        add_reward_margins(pairs(4), reward_model(tokenizer), tokenizer=tokenizer, column="reward_model")


@pytest.mark.multiprocess
def test_one_command_in_two_processes_scores_and_trains(policy, tokenizer, tmp_path):
    """`gradkit dpo` on raw pairs and a reward model: the log has the margins of the whole data, from both ranks."""
    path = str(save_reward_model(tokenizer, tmp_path / "reward"))
    data = labelled(path)
    data.to_json(tmp_path / "pairs.jsonl")
    settings = {
        "model_name_or_path": policy,
        "dataset_name": str(tmp_path / "pairs.jsonl"),
        "output_dir": str(tmp_path / "out"),
        "weighting": "madpo",
        "reward_model_name_or_path": path,
        "per_device_train_batch_size": 2,
        "max_steps": 3,
        "logging_steps": 1,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "ddp_find_unused_parameters": False,
    }
    (tmp_path / "dpo.yaml").write_text(yaml.safe_dump(settings))
    cache = {"HF_DATASETS_CACHE": str(tmp_path / "two")}
    ended = launch("hf_gradkit.cli.dpo", ["--config", str(tmp_path / "dpo.yaml")], env=cache)
    ended.assert_backend("multi_gpu")
    info = json.loads((tmp_path / "out" / "gradkit_run.json").read_text())
    assert (info["processes"], info["distributed_type"]) == (2, "MULTI_CPU")
    margins = torch.tensor(list(add_reward_margins(data, path)["reward_margin"]))
    assert info["margin_temperature"] == pytest.approx(fit_temperature(margins), rel=1e-6)
    logs = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in logs if "loss" in entry] == [1, 2, 3]
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_the_command_says_what_is_missing(policy, tmp_path, capsys):
    pairs(8).to_json(tmp_path / "pairs.jsonl")
    arguments = ["--model_name_or_path", policy, "--dataset_name", str(tmp_path / "pairs.jsonl")]
    arguments += ["--output_dir", str(tmp_path / "out"), "--weighting", "madpo", "--bf16", "false"]
    assert dpo_command.main(arguments) == 2
    message = capsys.readouterr().err
    assert "no column 'reward_margin' with reward margins" in message
    assert "gradkit score --by reward" in message
