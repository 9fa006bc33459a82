"""PrivacyAuditCallback: the figures of an audit after each epoch, and training as if it were not there."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

import hf_gradkit
from audit_helpers import LENGTH, record_tokenizer, records, save_base, slow_log_probs
from helpers import DEFAULTS, parameter_gap, text_dataset
from hf_gradkit.audit import audit_membership, hold_out
from hf_gradkit.callbacks.privacy_audit import FOLDER, PrivacyAuditCallback
from hf_gradkit.data.tiny import tiny_llama
from hf_gradkit.scoring import SFTFormat, tokenize_sft
from pair_helpers import pairs, save_policy

ROWS, HELD = 80, 20


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("callback"), record_tokenizer(), steps=60)


@pytest.fixture(scope="module")
def split():
    return hold_out(records(ROWS), HELD / ROWS)


def make(base, output_dir, split, trainer_class=trl.SFTTrainer, model=None, peft_config=None, **options):
    """Return a trainer of the base model on the split's training rows, with the held-out rows to evaluate on."""
    config = hf_gradkit.SFTConfig if trainer_class is hf_gradkit.SFTTrainer else trl.SFTConfig
    defaults = {**DEFAULTS, "max_steps": -1, "num_train_epochs": 2, "max_length": LENGTH, "logging_steps": 5}
    defaults |= {"optim": "adamw_torch", "learning_rate": 3e-3, "eval_strategy": "no", "logging_strategy": "steps"}
    return trainer_class(
        model=model or AutoModelForCausalLM.from_pretrained(base),
        args=config(output_dir=str(output_dir), **{**defaults, **options}),
        train_dataset=split.train,
        eval_dataset=split.held_out,
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=peft_config,
    )


def lines(output_dir) -> list[dict]:
    return [json.loads(line) for line in (Path(output_dir) / "privacy_audit.jsonl").read_text().splitlines()]


def audit(trainer, **options) -> PrivacyAuditCallback:
    callback = PrivacyAuditCallback(trainer=trainer, attacks=None, **options)
    trainer.add_callback(callback)
    return callback


def test_the_monitor_of_a_configuration(base, split, tmp_path):
    split.record.write(tmp_path / "run")
    options = {"monitors": ["privacy_audit"], "num_train_epochs": 1}
    trainer = make(base, tmp_path / "run", split, hf_gradkit.SFTTrainer, **options)
    trainer.train()
    (line,) = lines(tmp_path / "run")
    assert 0 <= line["privacy_audit/auc_flora"] <= 1
    assert any("privacy_audit/auc_flora" in entry for entry in trainer.state.log_history)
    with pytest.raises(ValueError, match="`monitors` has 'privacy_audit', which RewardConfig does not know"):
        hf_gradkit.RewardConfig("out", monitors=["privacy_audit"], use_cpu=True, bf16=False)


def losses(model, rows) -> float:
    """Return the mean loss over all label tokens, one (ids, first label) after the other, from plain logits."""
    found = []
    for ids, first in rows:
        log_probs = slow_log_probs(model, ids)
        found += [-log_probs[t - 1, ids[t]].item() for t in range(max(1, first), len(ids))]
    return sum(found) / len(found)


@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
def test_preference_training_is_audited_by_its_chosen_answers(mode, tokenizer, tmp_path):
    policy, data = save_policy(tmp_path / "policy", tokenizer), pairs(24)
    args = hf_gradkit.DPOConfig(
        str(tmp_path / "run"),
        **{**DEFAULTS, "max_steps": -1, "num_train_epochs": 1, "max_length": 12, "truncation_mode": mode},
        monitors=["privacy_audit"],
        hold_out_fraction=0.25,
    )
    trainer = hf_gradkit.DPOTrainer(policy, args=args, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    (line,) = lines(tmp_path / "run")
    assert not line["unsound"]
    for name, side in (("member_loss", trainer.train_dataset), ("held_out_loss", trainer.eval_dataset)):
        rows = []
        for row in side:
            ids, first = row["prompt_ids"] + row["chosen_ids"], len(row["prompt_ids"])
            cut = max(0, len(ids) - 12) if mode == "keep_end" else 0
            rows.append((ids[cut : cut + 12], max(0, first - cut)))
        assert line[f"privacy_audit/{name}"] == pytest.approx(losses(trainer.model, rows), rel=1e-4)


def test_the_plain_trainer_is_audited(tokenizer, tmp_path):
    data = Dataset.from_list([{"input_ids": ids, "labels": ids} for text in text_dataset(24)["text"]
                              for ids in [tokenizer(text)["input_ids"]]])  # fmt: skip
    options = {**DEFAULTS, "max_steps": -1, "num_train_epochs": 1, "monitors": ["privacy_audit"]}
    args = hf_gradkit.TrainingArguments(str(tmp_path), **options, hold_out_fraction=0.25)
    collator = DataCollatorForTokenClassification(tokenizer)
    keywords = {"train_dataset": data, "data_collator": collator}
    trainer = hf_gradkit.Trainer(tiny_llama(tokenizer, hidden_size=32), args, processing_class=tokenizer, **keywords)
    trainer.train()
    (line,) = lines(tmp_path)
    expected = losses(trainer.model, [(row["input_ids"], 0) for row in trainer.eval_dataset])
    assert line["privacy_audit/held_out_loss"] == pytest.approx(expected, rel=1e-4)
    without = hf_gradkit.Trainer(tiny_llama(tokenizer, hidden_size=32), args, **keywords)
    with pytest.raises(ValueError, match="the trainer has no tokenizer"):
        without.train()
    config = LlamaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0)
    classifier = hf_gradkit.Trainer(
        LlamaForSequenceClassification(config), args, processing_class=tokenizer, **keywords
    )
    with pytest.raises(ValueError, match="LlamaForSequenceClassification is no causal language model"):
        classifier.train()


@pytest.mark.parametrize("kind", ["full", "lora", "ours"])
def test_the_last_epochs_figures_are_those_of_the_audit_of_the_saved_model(kind, base, split, tmp_path):
    split.record.write(tmp_path / "run")
    adapter = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM") if kind == "lora" else None
    cls = hf_gradkit.SFTTrainer if kind == "ours" else trl.SFTTrainer
    trainer = make(base, tmp_path / "run", split, cls, peft_config=adapter)
    audit(trainer)
    trainer.train()
    trainer.save_model()
    found = lines(tmp_path / "run")
    assert [line["epoch"] for line in found] == [1.0, 2.0]
    assert not found[0]["unsound"]
    expected = audit_membership(
        str(tmp_path / "run"),
        records(ROWS),
        reference_model=None if kind == "lora" else base,
        layout=SFTFormat(max_length=LENGTH),
        bootstrap_rounds=5,
        cache_folder=tmp_path / "cache",
    ).figures
    for name, figures in expected["attacks"].items():
        assert found[-1][f"privacy_audit/auc_{name}"] == pytest.approx(figures["auc"], abs=2e-3), name
        assert found[-1][f"privacy_audit/tpr_{name}"] == pytest.approx(figures["tpr"]["0.01"]["tpr"], abs=0.02), name
    for name in ("member_loss", "held_out_loss"):
        assert found[-1][f"privacy_audit/{name}"] == pytest.approx(expected["utility"][name], abs=1e-5)
    logged = [entry for entry in trainer.state.log_history if "privacy_audit/auc_flora" in entry]
    assert logged


def test_training_is_what_it_would_be_without(base, split, tmp_path):
    runs = []
    for watched in (False, True):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(base, attention_dropout=0.2)
        trainer = make(base, tmp_path / str(watched), split, model=model)
        if watched:
            audit(trainer)
        trainer.train()
        runs.append(trainer)
    assert parameter_gap(*runs) == 0.0
    assert not any((tmp_path / "True" / FOLDER).glob("step-*"))


def test_packed_rows_are_taken_apart(base, split, tmp_path):
    trainer = make(base, tmp_path, split, packing=True, eval_packing=True)
    assert "seq_lengths" in trainer.train_dataset.column_names
    callback = audit(trainer)
    callback.on_train_begin(
        trainer.args, trainer.state, None, model=trainer.model, processing_class=trainer.processing_class
    )
    examples = callback._examples
    expected = tokenize_sft(split.train, trainer.processing_class, SFTFormat(max_length=LENGTH))
    found = {row.input_ids.tobytes() for row, member in zip(examples.rows, examples.members, strict=True) if member}
    assert found == {row.input_ids.tobytes() for row in expected}
    assert (~examples.members).sum() == HELD


def test_a_resumed_run_has_its_reference(base, split, tmp_path):
    options = {"save_strategy": "epoch", "num_train_epochs": 2}
    whole = make(base, tmp_path / "whole", split, **options)
    audit(whole)
    whole.train()
    first = make(base, tmp_path / "parts", split, **options)
    audit(first)
    first.train()
    checkpoint = tmp_path / "parts" / f"checkpoint-{first.state.global_step // 2}"
    second = make(base, tmp_path / "parts", split, **options)
    audit(second)
    second.train(resume_from_checkpoint=str(checkpoint))
    assert [line["step"] for line in lines(tmp_path / "parts")] == [line["step"] for line in lines(tmp_path / "whole")]
    for name in ("auc_flora", "auc_loss"):
        key = f"privacy_audit/{name}"
        assert lines(tmp_path / "parts")[-1][key] == pytest.approx(lines(tmp_path / "whole")[-1][key], abs=1e-6)
    third = make(base, tmp_path / "parts", split, **options)
    audit(third, max_examples=10)
    with pytest.raises(ValueError, match="does not hold what the model said of these examples before its first step"):
        third.train(resume_from_checkpoint=str(checkpoint))


def test_given_sides_and_samples(base, split, tmp_path, caplog):
    trainer = make(base, tmp_path, split, num_train_epochs=1)
    sides = {"members": trainer.train_dataset, "non_members": records(30, seed=9)}
    callback = PrivacyAuditCallback(**sides, attacks=["loss"], max_examples=15, seed=3)
    trainer.add_callback(callback)
    trainer.train()
    assert len(callback._examples.rows) == 30
    (line,) = lines(tmp_path)
    assert line["unsound"]
    assert "There is no record of a hold-out" in caplog.text
    assert 0 <= line["privacy_audit/auc_loss"] <= 1
    assert "privacy_audit/auc_loss" not in [*trainer.state.log_history[0]]


def test_what_cannot_be_audited(base, split, tmp_path):
    trainer = make(base, tmp_path, split)
    trainer.eval_dataset = None
    audit(trainer)
    with pytest.raises(ValueError, match="has no non-members: `eval_dataset` is a NoneType"):
        trainer.train()
    trainer = make(base, tmp_path, split)
    callback = PrivacyAuditCallback(trainer=trainer, members=pairs(4))
    with pytest.raises(ValueError, match="`train_dataset` has pairs that no trainer has prepared"):
        callback._load_examples(trainer.processing_class)
    both = Dataset.from_list([*split.held_out, *split.train.select(range(2))])
    callback = PrivacyAuditCallback(members=split.train, non_members=both)
    with pytest.raises(ValueError, match="2 non-members are members as well"):
        callback._load_examples(trainer.processing_class)
    for options, message in (
        ({"false_positive_rate": 0}, "`false_positive_rate` must lie above 0"),
        ({"max_examples": 1}, "`max_examples` must be a whole number of at least 2"),
        ({"attacks": ["los"]}, "Did you mean 'loss'"),
    ):
        with pytest.raises(ValueError, match=message):
            PrivacyAuditCallback(**options)


def test_attacks_are_those_of_the_registry():
    assert set(PrivacyAuditCallback(attacks=None).attacks) >= {"loss", "flora", "window"}
    assert np.isfinite(PrivacyAuditCallback().alpha)
