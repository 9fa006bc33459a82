"""RewardTrainer: TRL's, step by step, and what it says of the data before."""

import inspect
import logging

import pytest
import trl
from datasets import Dataset
from peft import LoraConfig

import hf_gradkit
from helpers import logs_without_timings, parameter_gap, train
from hf_gradkit import _compat
from hf_gradkit.trainers.reward_trainer import RewardTrainer
from pairs import make_pairs, pair_dataset, reward_model


def fit(trainer_class, config_class, tokenizer, folder, dataset, model=None, **options):
    keywords = {"model": model or reward_model(tokenizer)}
    keywords |= {name: options.pop(name) for name in ("eval_dataset", "peft_config") if name in options}
    return train(trainer_class, config_class, tokenizer, folder, dataset, trainer_kwargs=keywords, **options)


CASES = {
    "plain": ("plain", {}),
    "messages with accumulation": ("messages", {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}),
    "long pairs dropped": ("prompt", {"max_length": 16}),
    "centred, adamw, checkpointed in bf16": (
        "messages prompt",
        {"center_rewards_coefficient": 0.01, "optim": "adamw_torch", "activation_checkpointing": True, "bf16": True},
    ),
    "lora and evaluation": (
        "plain",
        {
            "peft_config": LoraConfig(r=4, task_type="SEQ_CLS", target_modules="all-linear"),
            "eval_dataset": pair_dataset(6, seed=1),
            "eval_strategy": "steps",
            "eval_steps": 2,
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_reward_trainer_equals_trl(case, tokenizer, tmp_path):
    kind, options = CASES[case]
    dataset = pair_dataset(26, kind)
    theirs = fit(trl.RewardTrainer, trl.RewardConfig, tokenizer, tmp_path / "trl", dataset, **dict(options))
    ours = fit(RewardTrainer, hf_gradkit.RewardConfig, tokenizer, tmp_path / "ours", dataset, **dict(options))
    assert logs_without_timings(theirs) == logs_without_timings(ours)
    assert parameter_gap(theirs, ours) == 0
    assert len([entry for entry in ours.state.log_history if "loss" in entry]) == 4
    assert ours.train_dataset.to_list() == theirs.train_dataset.to_list()


def test_streams_and_tokenised_data_equal_trl(tokenizer, tmp_path):
    dataset = pair_dataset(26)
    runs = {}
    for name, trainer, config in (
        ("trl", trl.RewardTrainer, trl.RewardConfig),
        ("ours", RewardTrainer, hf_gradkit.RewardConfig),
    ):
        streamed = fit(trainer, config, tokenizer, tmp_path / name, dataset.to_iterable_dataset())
        ids = Dataset.from_list(
            [{"chosen_ids": [5, 6, 7 + i % 9], "rejected_ids": [5, 6, 8 + i % 5, 3]} for i in range(26)]
        )
        runs[name] = [streamed, fit(trainer, config, tokenizer, tmp_path / name / "ids", ids)]
    for theirs, ours in zip(runs["trl"], runs["ours"], strict=True):
        assert logs_without_timings(theirs) == logs_without_timings(ours)
        assert parameter_gap(theirs, ours) == 0


def test_every_override_has_a_parent_and_runs(tokenizer, tmp_path, monkeypatch):
    """Of the override of every method: test_seams.py."""
    called = []
    for name in _compat.REWARD_SEAMS:
        assert callable(getattr(trl.RewardTrainer, name))
        method = getattr(RewardTrainer, name)
        monkeypatch.setattr(
            RewardTrainer, name, lambda *a, method=method, **k: called.append(method.__name__) or method(*a, **k)
        )
    saving = {"save_strategy": "steps", "save_steps": 1}
    fit(RewardTrainer, hf_gradkit.RewardConfig, tokenizer, tmp_path, pair_dataset(8), max_steps=1, **saving)
    assert set(called) == set(_compat.REWARD_SEAMS)
    parameters = list(inspect.signature(trl.RewardTrainer.__init__).parameters)
    assert parameters[1:5] == ["model", "args", "data_collator", "train_dataset"]


# ---- what it says -----------------------------------------------------------------------------------------------


def test_a_margin_column_is_said_to_be_in_the_loss(tokenizer, tmp_path, caplog):
    """TRL subtracts it: the warning is right, and without the column there is none."""
    dataset = pair_dataset(8)
    losses = {}
    for name, data in (("without", dataset), ("with", dataset.add_column("margin", [3.0] * 8))):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            trainer = fit(RewardTrainer, hf_gradkit.RewardConfig, tokenizer, tmp_path, data, max_steps=1)
        losses[name] = trainer.state.log_history[0]["loss"]
        assert ("has a column 'margin'" in caplog.text) == (name == "with")
    assert "dataset.rename_column('margin', 'reward_margin')" in caplog.text
    assert losses["with"] > losses["without"] + 1


def test_identical_and_long_pairs_are_counted(tokenizer, tmp_path, caplog):
    rows = make_pairs(12)
    rows[3]["rejected"] = rows[3]["chosen"]
    lengths = [max(len(tokenizer(row[c] + "<|end|>")["input_ids"]) for c in ("chosen", "rejected")) for row in rows]
    limit = sorted(lengths)[8]
    with caplog.at_level(logging.WARNING):
        trainer = fit(
            RewardTrainer,
            hf_gradkit.RewardConfig,
            tokenizer,
            tmp_path,
            Dataset.from_list(rows),
            max_length=limit,
            max_steps=1,
        )
    dropped = sum(length > limit for length in lengths)
    assert 0 < dropped < 12
    assert len(trainer.train_dataset) == 12 - dropped
    assert "In the train data, 1 of 12 pairs have the same chosen and rejected completion" in caplog.text
    assert f"{dropped} of 12 pairs of the train data are dropped" in caplog.text


@pytest.mark.parametrize(
    ("change", "options", "expected"),
    [
        (lambda rows: [{**row, "chosen": ""} if i == 5 else row for i, row in enumerate(rows)], {}, "Row 5 of the tr"),
        (lambda rows: rows, {"max_length": 2}, "8 of 8 pairs of the train data are longer .* none is left"),
        (lambda rows: [], {}, "The training data has no rows"),
        (lambda rows: [{"chosen": row["chosen"]} for row in rows], {}, "the train data has no 'rejected'"),
    ],
)
def test_data_that_cannot_be_trained_on(change, options, expected, tokenizer, tmp_path):
    dataset = Dataset.from_list(change(make_pairs(8)))
    with pytest.raises(ValueError, match=expected):
        fit(RewardTrainer, hf_gradkit.RewardConfig, tokenizer, tmp_path, dataset, **options)


def test_a_prompt_that_is_no_conversation_beside_conversations(tokenizer, tmp_path):
    rows = [{**row, "prompt": "why?"} for row in make_pairs(8, "messages")]
    with pytest.raises(ValueError, match="`prompt` is a str and `chosen` a list"):
        fit(RewardTrainer, hf_gradkit.RewardConfig, tokenizer, tmp_path, Dataset.from_list(rows))


def test_replicas_are_refused(tokenizer, tmp_path, monkeypatch):
    args = hf_gradkit.RewardConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="each of them its own model"):
        RewardTrainer(reward_model(tokenizer), args, train_dataset=pair_dataset(4), processing_class=tokenizer)
