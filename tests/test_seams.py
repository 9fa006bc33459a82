"""Each method of transformers and TRL that ours override exists there, and the override runs in training.

An upgrade that moves or renames one fails here, and not a user in silence.
"""

import inspect

import pytest
import transformers
import trl

import hf_gradkit
from helpers import text_dataset, train
from hf_gradkit import _compat


def seams_of(trainer_class):
    own = _compat.SFT_SEAMS if issubclass(trainer_class, trl.SFTTrainer) else _compat.PLAIN_SEAMS
    return {**_compat.TRAINER_SEAMS, **own}


@pytest.mark.parametrize("trainer_class", [hf_gradkit.SFTTrainer, hf_gradkit.Trainer])
def test_every_override_has_a_parent_and_is_listed(trainer_class):
    parent = trl.SFTTrainer if issubclass(trainer_class, trl.SFTTrainer) else transformers.Trainer
    ours = {
        name
        for cls in trainer_class.__mro__
        if cls.__module__.startswith("hf_gradkit")
        for name, value in vars(cls).items()
        if inspect.isfunction(value) and hasattr(parent, name) and name != "__init__"
    }
    assert ours == set(seams_of(trainer_class))
    for name in seams_of(trainer_class):
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
