"""Each method of transformers and TRL that ours override exists there, and the override runs in training.

An upgrade that moves or renames one fails here, and not a user in silence.
"""

import inspect
import re

import pytest
import transformers
import trl

import hf_gradkit
from helpers import text_dataset, train
from hf_gradkit import _compat
from pair_helpers import dpo, pairs, save_policy, train_dpo

PARENTS = {
    hf_gradkit.SFTTrainer: trl.SFTTrainer,
    hf_gradkit.Trainer: transformers.Trainer,
    hf_gradkit.DPOTrainer: trl.DPOTrainer,
    hf_gradkit.RewardTrainer: trl.RewardTrainer,
}
SEAMS = {
    hf_gradkit.SFTTrainer: {**_compat.TRAINER_SEAMS, **_compat.SFT_SEAMS},
    hf_gradkit.Trainer: {**_compat.TRAINER_SEAMS, **_compat.PLAIN_SEAMS},
    hf_gradkit.DPOTrainer: _compat.TRAINER_SEAMS,
    hf_gradkit.RewardTrainer: _compat.REWARD_SEAMS,
}


def seams_of(trainer_class):
    return SEAMS[trainer_class]


@pytest.mark.parametrize("trainer_class", PARENTS)
def test_every_override_has_a_parent_and_is_listed(trainer_class):
    parent = PARENTS[trainer_class]
    ours = {
        name
        for cls in trainer_class.__mro__
        if cls.__module__.startswith("hf_gradkit")
        for name, value in vars(cls).items()
        if inspect.isfunction(value) and hasattr(parent, name) and name != "__init__"
    }
    assert ours == {*seams_of(trainer_class), *_compat.HUB_SEAMS}  # tests/test_push_training.py sees the latter run
    for name in (*seams_of(trainer_class), *_compat.HUB_SEAMS):
        assert callable(getattr(parent, name)), f"{parent.__name__} has no {name} any more"


def spy_on(method, called):
    def spy(self, *args, **kwargs):
        called.add(method.__name__)
        return method(self, *args, **kwargs)

    return spy


@pytest.mark.parametrize(
    ("trainer_class", "config_class"),
    [(hf_gradkit.SFTTrainer, hf_gradkit.SFTConfig), (hf_gradkit.Trainer, hf_gradkit.TrainingArguments)],
)
def test_every_override_runs_in_training(trainer_class, config_class, tokenizer, tmp_path, monkeypatch):
    called = set()
    for cls in trainer_class.__mro__:
        if not cls.__module__.startswith("hf_gradkit"):
            continue
        for name in seams_of(trainer_class):
            if name in vars(cls):
                monkeypatch.setattr(cls, name, spy_on(vars(cls)[name], called))
    dataset, keywords = text_dataset(), {}
    if trainer_class is hf_gradkit.Trainer:
        dataset = dataset.map(lambda row: tokenizer(row["text"]), remove_columns="text")
        keywords["data_collator"] = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)
    keywords["eval_dataset"] = dataset
    options = {"weighting": "linupper", "max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    options |= {"eval_strategy": "steps", "eval_steps": 2}
    train(trainer_class, config_class, tokenizer, tmp_path, dataset, trainer_kwargs=keywords, **options)
    assert called == set(seams_of(trainer_class))


def test_every_override_runs_in_preference_training(tokenizer, tmp_path, monkeypatch):
    called = set()
    for cls in hf_gradkit.DPOTrainer.__mro__:
        for name in _compat.TRAINER_SEAMS if cls.__module__.startswith("hf_gradkit") else ():
            if name in vars(cls):
                monkeypatch.setattr(cls, name, spy_on(vars(cls)[name], called))
    options = {"weighting": "madpo", "max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    policy = save_policy(tmp_path / "policy", tokenizer)
    data = pairs(26, "reward_margin")
    train_dpo(hf_gradkit.DPOTrainer, hf_gradkit.DPOConfig, policy, tmp_path / "out", data, **options)
    assert called == set(_compat.TRAINER_SEAMS)


def test_what_is_relied_on_in_trls_preference_loss(tokenizer, tmp_path):
    """Its loss types are those we know, its loss reads the attributes that we set, and it gives the reference."""
    policy = save_policy(tmp_path / "policy", tokenizer)
    options = {"loss_type": ["no such type"], "max_steps": 1}
    trainer = dpo(trl.DPOTrainer, trl.DPOConfig, policy, tmp_path, pairs(8), **options)
    batch = next(iter(trainer.get_train_dataloader()))
    with pytest.raises(ValueError, match="Unknown loss type") as error:
        trainer.compute_loss(trainer.model, batch)
    named = str(error.value).partition("one of")[2]
    assert set(re.findall(r"'(\w+)'", named)) == set(_compat.DPO_LOSS_TYPES)
    for name in _compat.DPO_LOSS_ATTRIBUTES:
        assert hasattr(trainer, name)
    with _compat.dpo_loss(trainer, ["sigmoid"], [2.0], weighted=False):
        assert trainer.loss_types == ["sigmoid"]
        chosen, rejected = trainer.compute_ref_log_probs(trainer.ref_model, batch)
        inputs = {**batch, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
        assert trainer.compute_loss(trainer.model, inputs).item() == pytest.approx(2 * 0.693147, rel=1e-5)
    assert trainer.loss_types == ["no such type"]
    assert trainer.precompute_ref_logps is False


def test_no_term_of_trls_leaves_its_metrics(tokenizer, tmp_path):
    """With ours alone TRL is asked for no loss at all, and logs as always."""
    policy = save_policy(tmp_path / "policy", tokenizer)
    trainer = train_dpo(
        hf_gradkit.DPOTrainer, hf_gradkit.DPOConfig, policy, tmp_path / "a", pairs(26), loss_type=["rpo"]
    )
    theirs = train_dpo(trl.DPOTrainer, trl.DPOConfig, policy, tmp_path / "b", pairs(26))
    (first, *_), (expected, *_) = trainer.state.log_history, theirs.state.log_history
    for key in ("rewards/chosen", "rewards/margins", "logps/chosen", "entropy", "mean_token_accuracy", "num_tokens"):
        assert first[key] == pytest.approx(expected[key], abs=1e-6), key


def test_what_is_relied_on_in_trl(tokenizer, tmp_path):
    """The fused head's output, and the attributes that _compat reads."""
    trainer = train(hf_gradkit.SFTTrainer, hf_gradkit.SFTConfig, tokenizer, tmp_path, text_dataset(), max_steps=1)
    batch = next(iter(trainer.get_train_dataloader()))
    outputs = trainer.model(**batch, fused_lm_head=True)
    assert outputs.log_probs.shape == (4, batch["input_ids"].shape[1] - 1)
    assert outputs.log_probs.requires_grad
    assert outputs.label_mask.shape == outputs.log_probs.shape
    assert (outputs.log_probs[~outputs.label_mask] == 0).all()
    assert _compat.shifts_labels(trainer) is True
    assert _compat.has_vision_data(trainer) is False


def test_the_installed_releases_are_the_tested_ones():
    assert _compat.untested_versions() == []
