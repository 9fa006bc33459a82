"""Reward margins: the tokens of TRL's RewardTrainer, the rewards of one forward a sequence, kept under a hash."""

import copy
import json
import logging

import numpy as np
import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig

from hf_gradkit.data.tiny import tiny_llama
from hf_gradkit.scoring import (
    add_reward_margins,
    load_reward_model,
    tokenize_pairs,
)
from pairs import KINDS, make_pairs, one_by_one, pair_dataset, reward_model, rewards_of, save_reward_model


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory):
    return save_reward_model(tokenizer, tmp_path_factory.mktemp("reward") / "model")


@pytest.fixture
def cache(tmp_path):
    return {"cache_folder": tmp_path / "scores"}


def reward_trainer(trainer_class, config_class, tokenizer, folder, dataset, model, **options):
    defaults = {"use_cpu": True, "bf16": False, "report_to": "none", "max_length": None, "disable_tqdm": True}
    defaults |= {"activation_checkpointing": False, "save_strategy": "no", "max_steps": 2}
    peft_config = options.pop("peft_config", None)
    return trainer_class(
        model=model,
        args=config_class(output_dir=str(folder), **{**defaults, **options}),
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=peft_config,
    )


# ---- tokens ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KINDS, "eos there", "options"])
def test_tokens_are_those_of_trl(kind, tokenizer, tmp_path):
    rows = make_pairs(6, kind if kind in KINDS else "messages prompt" if kind == "options" else "plain")
    if kind == "eos there":
        rows[1]["chosen"] += tokenizer.eos_token
    if kind == "options":  # given to the chat template
        rows = [{**row, "tools": '[{"name": "f"}]', "chat_template_kwargs": {"style": "!"}} for row in rows]
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.chat_template = "{{ tools[0]['name'] + style }}" + tokenizer.chat_template
    dataset = Dataset.from_list(rows)
    trainer = reward_trainer(
        trl.RewardTrainer, trl.RewardConfig, tokenizer, tmp_path, dataset, reward_model(tokenizer)
    )
    prepared = trainer.train_dataset
    theirs = [ids for row in prepared for ids in (row["chosen_ids"], row["rejected_ids"])]
    assert [ids.tolist() for ids in tokenize_pairs(dataset, tokenizer, None)] == theirs


def test_a_copy_of_the_prompt_beside_whole_conversations_is_left_out(tokenizer):
    rows = make_pairs(4, "messages")
    beside = [{**row, "prompt": row["chosen"][0]["content"]} for row in rows]
    tokens = [tokenize_pairs(Dataset.from_list(some), tokenizer, None) for some in (rows, beside)]
    assert all((a == b).all() for a, b in zip(*tokens, strict=True))


def test_long_sequences_are_cut_at_the_left_and_counted(tokenizer, caplog):
    dataset = pair_dataset(8)
    whole = tokenize_pairs(dataset, tokenizer, None)
    lengths = np.array([len(ids) for ids in whole]).reshape(-1, 2).max(1)
    limit = int(np.median(lengths))
    with caplog.at_level(logging.WARNING):
        cut = tokenize_pairs(dataset, tokenizer, limit)
    for before, after in zip(whole, cut, strict=True):
        assert after.tolist() == before[-limit:].tolist()
    number = int((lengths > limit).sum())
    assert 0 < number < 8
    assert f"{number} of 8 pairs are longer than max_length ({limit} tokens)" in caplog.text


def test_the_models_own_limit_is_the_default(tokenizer, saved, tmp_path, cache, caplog):
    short = save_reward_model(tokenizer, tmp_path / "short", length=16)
    dataset = pair_dataset(8)
    with caplog.at_level(logging.WARNING):
        scored = add_reward_margins(dataset, str(short), **cache)
    assert "longer than max_length (16 tokens)" in caplog.text
    given = add_reward_margins(dataset, str(saved), max_length=16, **cache)
    assert rewards_of(scored) == pytest.approx(rewards_of(given), abs=1e-6)


# ---- rewards --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_rewards_are_those_of_one_forward_a_sequence(kind, tokenizer, saved, cache):
    dataset = pair_dataset(12, kind)
    scored = add_reward_margins(dataset, str(saved), batch_size=3, **cache)
    oracle = one_by_one(reward_model(tokenizer), tokenize_pairs(dataset, tokenizer, None)).reshape(-1, 2).numpy()
    assert rewards_of(scored) == pytest.approx(oracle, abs=1e-5)
    assert np.ptp(oracle) > 0.5
    margins = [a - b for a, b in zip(scored["reward_chosen"], scored["reward_rejected"], strict=True)]
    assert scored["reward_margin"] == margins
    assert scored.features["reward_margin"].dtype == "float64"
    assert scored.column_names == [
        *dataset.column_names,
        *("reward_chosen", "reward_rejected", "reward_margin", "reward_model"),
    ]
    assert scored.select_columns(dataset.column_names).to_list() == dataset.to_list()


def test_rewards_do_not_depend_on_batches_or_order(tokenizer, saved, tmp_path):
    dataset = pair_dataset(11)
    order = np.random.default_rng(0).permutation(11)
    results = [
        rewards_of(add_reward_margins(data, str(saved), batch_size=size, cache_folder=tmp_path / f"{size}"))
        for data, size in ((dataset, 1), (dataset, 11), (dataset.select(order), 4))
    ]
    assert results[1] == pytest.approx(results[0], abs=1e-5)
    assert results[2] == pytest.approx(results[0][order], abs=1e-5)


@pytest.mark.parametrize("pad", ["eos", "none in the model", "another in the model"])
def test_the_last_token_is_found_whatever_pads(pad, tokenizer, tmp_path, cache):
    """The model takes the last token that is not padding; where the end token pads, TRL trains it so as well."""
    other = tokenizer.convert_tokens_to_ids("<|system|>")
    ids = {"eos": tokenizer.eos_token_id, "none in the model": None, "another in the model": other}
    folder = save_reward_model(tokenizer, tmp_path / "model", pad_token_id=ids[pad])
    dataset = pair_dataset(9)
    scored = add_reward_margins(dataset, str(folder), batch_size=9, **cache)
    sequences = tokenize_pairs(dataset, tokenizer, None)
    if pad == "eos":
        sequences = [sequence[:-1] for sequence in sequences]
    oracle = one_by_one(reward_model(tokenizer), sequences).reshape(-1, 2).numpy()
    assert rewards_of(scored) == pytest.approx(oracle, abs=1e-5)


@pytest.mark.parametrize("task", ["SEQ_CLS", "modules_to_save"])
def test_a_lora_folder_scores_as_the_model_that_was_trained(task, tokenizer, tmp_path, cache):
    tiny_llama(tokenizer, hidden_size=32).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    lora = {"r": 4, "target_modules": "all-linear"}
    lora |= {"task_type": "SEQ_CLS"} if task == "SEQ_CLS" else {"modules_to_save": ["score"]}
    dataset = pair_dataset(8)
    trainer = reward_trainer(
        *(trl.RewardTrainer, trl.RewardConfig, None, tmp_path / "lora", dataset, str(tmp_path / "base")),
        peft_config=LoraConfig(**lora),
        learning_rate=0.05,
        max_steps=4,
    )
    trainer.train()
    trainer.save_model()
    assert json.loads((tmp_path / "base" / "config.json").read_text()).get("num_labels", 2) == 2
    ours = rewards_of(add_reward_margins(dataset, str(tmp_path / "lora"), **cache))
    trained = trainer.model.eval()
    sequences = tokenize_pairs(dataset, tokenizer, None)
    with torch.no_grad():
        theirs = [trained(input_ids=torch.tensor(ids)[None]).logits.item() for ids in sequences]
    assert ours == pytest.approx(np.array(theirs).reshape(-1, 2), abs=1e-5)
    assert np.std(theirs) > 0.01
    live = rewards_of(add_reward_margins(dataset, trained, tokenizer=tokenizer, **cache))
    assert live == pytest.approx(ours, abs=1e-5)


def test_bf16(tokenizer, saved, cache):
    dataset = pair_dataset(12)
    exact = rewards_of(add_reward_margins(dataset, str(saved), **cache))
    rough = rewards_of(add_reward_margins(dataset, str(saved), dtype="bfloat16", **cache))
    assert load_reward_model(str(saved), "bfloat16").dtype == torch.bfloat16
    assert rough == pytest.approx(exact, abs=0.1)
    assert abs(rough - exact).max() > 1e-4  # kept apart from the exact ones


def test_a_model_in_memory_is_left_as_it_was(tokenizer, saved, cache):
    model = reward_model(tokenizer).train()
    scored = add_reward_margins(pair_dataset(6), model, tokenizer=tokenizer, **cache)
    of_folder = add_reward_margins(pair_dataset(6), str(saved), **cache)
    assert rewards_of(scored) == pytest.approx(rewards_of(of_folder), abs=1e-6)
    assert model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(ValueError, match="without a name: give its `tokenizer`"):
        add_reward_margins(pair_dataset(5), model, **cache)
    named = load_reward_model(str(saved))  # its tokenizer is where it was loaded from
    assert rewards_of(add_reward_margins(pair_dataset(6), named, **cache)) == pytest.approx(rewards_of(of_folder))
