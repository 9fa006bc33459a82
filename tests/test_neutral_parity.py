"""With every option of ours off, the trainers are their parents: losses, gradients, logs and parameters."""

import pytest
import torch
import transformers
import trl
from datasets import Dataset
from peft import LoraConfig

import hf_gradkit
from helpers import dataset_of, logs_without_timings, parameter_gap, text_dataset, train
from pair_helpers import pairs, save_policy, train_dpo

SFT_CASES = {
    "text": (("text",), {}),
    "accumulation with an incomplete last window": (
        ("text",),
        {"max_steps": -1, "num_train_epochs": 2, "gradient_accumulation_steps": 4, "per_device_train_batch_size": 2},
    ),
    "prompt and completion": (("prompt", "completion"), {}),
    "assistant only": (("messages",), {"assistant_only_loss": True}),
    "dft": (("text",), {"loss_type": "dft"}),
    "packed": (("text",), {"packing": True, "max_length": 64, "per_device_train_batch_size": 1}),
    "checkpointed in bf16": (("text",), {"activation_checkpointing": True, "bf16": True}),
    "adamw": (("text",), {"optim": "adamw_torch", "learning_rate": 1e-3}),
    "other columns in the data": (("text", "weight", "source"), {}),
}


@pytest.mark.parametrize("case", SFT_CASES)
def test_sft_trainer_equals_trl(case, tokenizer, tmp_path):
    columns, options = SFT_CASES[case]
    dataset = dataset_of(26, *columns)
    theirs = train(trl.SFTTrainer, trl.SFTConfig, tokenizer, tmp_path / "trl", dataset, **options)
    ours = train(hf_gradkit.SFTTrainer, hf_gradkit.SFTConfig, tokenizer, tmp_path / "ours", dataset, **options)
    assert logs_without_timings(theirs) == logs_without_timings(ours)
    assert parameter_gap(theirs, ours) == 0
    assert len(theirs.state.log_history) >= 4


def test_trl_configuration_in_our_trainer(tokenizer, tmp_path):
    dataset = text_dataset()
    theirs = train(trl.SFTTrainer, trl.SFTConfig, tokenizer, tmp_path / "trl", dataset)
    ours = train(hf_gradkit.SFTTrainer, trl.SFTConfig, tokenizer, tmp_path / "ours", dataset)
    assert type(ours.args) is trl.SFTConfig
    assert logs_without_timings(theirs) == logs_without_timings(ours)
    assert parameter_gap(theirs, ours) == 0
    assert not list((tmp_path / "ours").glob("*"))  # and nothing of ours is written


def test_lora_and_evaluation_equal_trl(tokenizer, tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 3}
    keywords = {"eval_dataset": text_dataset(10, seed=1), "peft_config": LoraConfig(r=4, target_modules="all-linear")}
    runs = [
        train(
            trainer,
            config,
            tokenizer,
            tmp_path / trainer.__module__,
            text_dataset(),
            trainer_kwargs=keywords,
            **options,
        )
        for trainer, config in (
            (trl.SFTTrainer, trl.SFTConfig),
            (hf_gradkit.SFTTrainer, hf_gradkit.SFTConfig),
        )
    ]
    assert logs_without_timings(runs[0]) == logs_without_timings(runs[1])
    assert any("eval_loss" in entry for entry in runs[1].state.log_history)
    assert parameter_gap(*runs) == 0


def test_streamed_data_equal_trl(tokenizer, tmp_path):
    dataset = text_dataset()
    theirs = train(trl.SFTTrainer, trl.SFTConfig, tokenizer, tmp_path / "trl", dataset.to_iterable_dataset())
    ours = train(
        hf_gradkit.SFTTrainer, hf_gradkit.SFTConfig, tokenizer, tmp_path / "ours", dataset.to_iterable_dataset()
    )
    assert logs_without_timings(theirs) == logs_without_timings(ours)
    assert parameter_gap(theirs, ours) == 0


DPO_CASES = {
    "plain": {},
    "accumulation over two epochs": {
        "max_steps": -1,
        "num_train_epochs": 2,
        "gradient_accumulation_steps": 4,
        "per_device_train_batch_size": 2,
    },
    "several loss types": {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
    "batch of sorted log-ratios": {"loss_type": ["aot"]},
    "WPO": {"use_weighting": True},
    "f-divergence and length": {"f_divergence_type": "js_divergence", "ld_alpha": 0.5},
    "precomputed": {"precompute_ref_log_probs": True},
    "synced reference": {"sync_ref_model": True, "ref_model_sync_steps": 2},
    "checkpointed in bf16": {"activation_checkpointing": True, "bf16": True},
    "adamw": {"optim": "adamw_torch", "learning_rate": 1e-3},
    "evaluated": {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 3},
}


@pytest.mark.parametrize("case", DPO_CASES)
def test_dpo_trainer_equals_trl(case, tokenizer, tmp_path):
    policy = save_policy(tmp_path / "policy", tokenizer)
    data = pairs(26, "weight", "reward_margin")  # further columns change nothing until they are named
    keywords = {"eval_dataset": pairs(10, seed=1)} if case == "evaluated" else {}
    theirs, ours = (
        train_dpo(
            trainer,
            config,
            policy,
            tmp_path / trainer.__module__,
            data,
            trainer_kwargs=dict(keywords),
            **DPO_CASES[case],
        )
        for trainer, config in ((trl.DPOTrainer, trl.DPOConfig), (hf_gradkit.DPOTrainer, hf_gradkit.DPOConfig))
    )
    assert logs_without_timings(theirs) == logs_without_timings(ours)
    assert parameter_gap(theirs, ours) == 0
    assert len(theirs.state.log_history) >= 5


def test_dpo_with_lora_and_trls_configuration_equals_trl(tokenizer, tmp_path):
    policy = save_policy(tmp_path / "policy", tokenizer)
    theirs, ours = (
        train_dpo(
            trainer,
            trl.DPOConfig,
            policy,
            tmp_path / trainer.__module__,
            pairs(26),
            trainer_kwargs={"peft_config": LoraConfig(r=4, target_modules="all-linear")},
            learning_rate=1.0,
        )
        for trainer in (trl.DPOTrainer, hf_gradkit.DPOTrainer)
    )
    assert logs_without_timings(theirs) == logs_without_timings(ours)
    assert parameter_gap(theirs, ours) == 0
    assert not list((tmp_path / ours.__module__).glob("*"))


def classification_data(tokenizer) -> Dataset:
    rows = tokenizer(list(text_dataset(26)["text"]))["input_ids"]
    return Dataset.from_dict({"input_ids": rows, "labels": [len(row) % 3 for row in rows]})


def classifier(tokenizer):
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_labels=3,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    return transformers.LlamaForSequenceClassification(config)


@pytest.mark.parametrize("kind", ["causal", "classification"])
def test_trainer_equals_transformers(kind, tokenizer, tmp_path):
    if kind == "causal":
        rows = tokenizer(list(text_dataset(26)["text"]))["input_ids"]
        dataset = Dataset.from_dict({"input_ids": rows})
        collator = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)
    else:
        dataset, collator = classification_data(tokenizer), None
    options = {"gradient_accumulation_steps": 2, "max_steps": 5}
    runs = []
    for trainer, config in (
        (transformers.Trainer, transformers.TrainingArguments),
        (hf_gradkit.Trainer, hf_gradkit.TrainingArguments),
    ):
        keywords = {"data_collator": collator}
        if kind == "classification":
            keywords["model"] = classifier(tokenizer)
        path = tmp_path / trainer.__module__
        runs.append(train(trainer, config, tokenizer, path, dataset, trainer_kwargs=keywords, **options))
    assert logs_without_timings(runs[0]) == logs_without_timings(runs[1])
    assert parameter_gap(*runs) == 0
