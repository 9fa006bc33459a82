"""Weighted runs of SFTTrainer: against TRL, over splits of the step, and with TRL's other options."""

import math

import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

import hf_gradkit
from helpers import logs_without_timings, parameter_gap, step_logs, text_dataset, train
from hf_gradkit.data.tiny import tiny_llama


@pytest.mark.parametrize("scope", ["micro_batch", "running", "step"])
def test_a_high_temperature_is_trl(scope, tokenizer, tmp_path):
    options = {"gradient_accumulation_steps": 2, "max_steps": 6, "logging_steps": 2}
    theirs = train(trl.SFTTrainer, trl.SFTConfig, tokenizer, tmp_path / "trl", text_dataset(26), **options)
    ours = train(
        hf_gradkit.SFTTrainer,
        hf_gradkit.SFTConfig,
        tokenizer,
        tmp_path / "ours",
        text_dataset(26),
        weighting="linupper",
        weighting_kwargs={"temperature": 1e9, "scope": scope, "warmup_ratio": 0.0},
        **options,
    )
    assert parameter_gap(theirs, ours) < 1e-6
    for theirs_log, ours_log in zip(logs_without_timings(theirs), logs_without_timings(ours), strict=True):
        assert {key: ours_log[key] for key in theirs_log} == pytest.approx(theirs_log, rel=1e-5)
    for loss, unweighted in zip(step_logs(ours, "loss"), step_logs(ours, "loss/unweighted"), strict=True):
        assert loss == pytest.approx(unweighted, rel=1e-5)


PACKED = {"packing": True, "max_length": 48, "per_device_train_batch_size": 1, "shuffle_dataset": True}


@pytest.mark.parametrize("case", ["columns alone", "weights of one", "warm-up", "packed", "packed and split"])
def test_weights_of_one_are_trl_to_the_last_bit(case, tokenizer, tmp_path):
    dataset = text_dataset(26, "source", "uid")
    if case == "weights of one":
        dataset = dataset.add_column("weight", [1.0] * 26)
    options = {
        "columns alone": {"group_column": "source", "example_id_column": "uid", "example_log": True},
        "weights of one": {"weight_column": "weight"},
        "warm-up": {"weighting": "linupper", "weighting_kwargs": {"warmup_ratio": 0.999}},
        "packed": {"group_column": "source"},
        "packed and split": {"group_column": "source"},
    }[case]
    both = {} if "packed" not in case else {**PACKED, "packing_strategy": "bfd_split" if "split" in case else "bfd"}
    theirs = train(trl.SFTTrainer, trl.SFTConfig, tokenizer, tmp_path / "trl", dataset, **both)
    ours = train(hf_gradkit.SFTTrainer, hf_gradkit.SFTConfig, tokenizer, tmp_path / "ours", dataset, **both, **options)
    assert parameter_gap(theirs, ours) == 0
    assert step_logs(theirs, "grad_norm") == step_logs(ours, "grad_norm")


def test_zero_weight_drops_the_gradient_exactly(tokenizer, tmp_path):
    """Two data sets whose rows of weight 0 hold different words give the same parameters, to the last bit."""
    runs = []
    for word in ("cat", "dog"):
        dropped = [i % 4 == 0 for i in range(24)]
        texts = [
            f"the {word} sat" if drop else text for drop, text in zip(dropped, text_dataset()["text"], strict=True)
        ]
        dataset = Dataset.from_dict({"text": texts, "weight": [0.0 if drop else 1.5 for drop in dropped]})
        runs.append(
            train(
                hf_gradkit.SFTTrainer,
                hf_gradkit.SFTConfig,
                tokenizer,
                tmp_path / word,
                dataset,
                weight_column="weight",
                weighting_kwargs={"normalization": "sequence"},
            )
        )
    assert len(tokenizer("the cat sat")["input_ids"]) == len(tokenizer("the dog sat")["input_ids"])
    assert parameter_gap(*runs) == 0
    assert min(step_logs(runs[0], "weights/min")) == 0
    assert min(step_logs(runs[0], "loss")) > 0


@pytest.mark.parametrize("normalization", ["token", "sequence"])
def test_normalizing_by_weights_makes_their_scale_irrelevant(normalization, tokenizer, tmp_path):
    runs = []
    for scale in (1.0, 7.0):
        dataset = text_dataset(24).add_column("weight", [scale * (1 + i % 3) for i in range(24)])
        runs.append(
            train(
                hf_gradkit.SFTTrainer,
                hf_gradkit.SFTConfig,
                tokenizer,
                tmp_path / str(scale),
                dataset,
                weight_column="weight",
                normalize_weight_column=True,
                weighting_kwargs={"normalization": normalization},
                gradient_accumulation_steps=2,
            )
        )
    assert parameter_gap(*runs) < 1e-6


def test_step_scope_is_the_same_for_every_split_of_the_step(tokenizer, tmp_path):
    runs = {}
    for batch, accumulation in ((8, 1), (2, 4), (1, 8)):
        runs[batch] = train(
            hf_gradkit.SFTTrainer,
            hf_gradkit.SFTConfig,
            tokenizer,
            tmp_path / str(batch),
            text_dataset(40),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            weighting="linupper",
            weighting_kwargs={"scope": "step", "temperature": 0.4, "warmup_ratio": 0.0},
            example_log=True,
        )
    for batch in (2, 1):
        assert parameter_gap(runs[8], runs[batch]) < 1e-6
        for key in ("loss", "loss/unweighted", "weights/ess", "weights/max", "weights/min"):
            assert step_logs(runs[8], key) == pytest.approx(step_logs(runs[batch], key), rel=1e-4)
    assert max(step_logs(runs[8], "weights/max")) > 1.05


def test_running_scope_weights_single_examples(tokenizer, tmp_path):
    trainer = train(
        hf_gradkit.SFTTrainer,
        hf_gradkit.SFTConfig,
        tokenizer,
        tmp_path,
        text_dataset(40),
        max_steps=5,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=8,
        weighting="linupper",
        weighting_kwargs={"temperature": 0.4},
    )
    assert step_logs(trainer, "weights/min")[-1] < 0.7 < 1.1 < step_logs(trainer, "weights/max")[-1]
    assert 0.5 < step_logs(trainer, "weights/ess")[-1] < 0.99


@pytest.mark.parametrize("scope", ["running", "step"])
def test_dropout_in_the_extra_forward_leaves_the_random_state(scope, tokenizer, tmp_path):
    """With nearly uniform weights, dropout on, and scope "step", training still equals TRL's."""
    options = {"gradient_accumulation_steps": 2}
    theirs = train(
        trl.SFTTrainer, trl.SFTConfig, tokenizer, tmp_path / "trl", text_dataset(), {"dropout": 0.3}, **options
    )
    ours = train(
        hf_gradkit.SFTTrainer,
        hf_gradkit.SFTConfig,
        tokenizer,
        tmp_path / "ours",
        text_dataset(),
        {"dropout": 0.3},
        weighting="linupper",
        weighting_kwargs={"temperature": 1e9, "scope": scope, "warmup_ratio": 0.0},
        **options,
    )
    assert parameter_gap(theirs, ours) < 1e-6


def test_the_extra_forward_sees_the_losses_of_the_training_forward(tokenizer, tmp_path):
    """Dropout and all: in one micro-batch, scope "step" and scope "micro_batch" give the same weights."""
    runs = [
        train(
            hf_gradkit.SFTTrainer,
            hf_gradkit.SFTConfig,
            tokenizer,
            tmp_path / scope,
            text_dataset(),
            {"dropout": 0.3},
            weighting="linupper",
            weighting_kwargs={"temperature": 0.4, "scope": scope, "warmup_ratio": 0.0},
        )
        for scope in ("step", "micro_batch")
    ]
    assert parameter_gap(*runs) < 1e-6


@pytest.mark.parametrize("checkpointing", [{"use_reentrant": False}, {"use_reentrant": True}])
def test_gradient_checkpointing_changes_nothing(checkpointing, tokenizer, tmp_path):
    runs = [
        train(
            hf_gradkit.SFTTrainer,
            hf_gradkit.SFTConfig,
            tokenizer,
            tmp_path / str(bool(options)),
            text_dataset(),
            weighting="linupper",
            weighting_kwargs={"temperature": 0.4, "warmup_ratio": 0.0, "scope": "step"},
            **options,
        )
        for options in ({}, {"activation_checkpointing": True, "activation_checkpointing_kwargs": checkpointing})
    ]
    assert parameter_gap(*runs) < 1e-6


def test_bf16_weights_follow_those_of_fp32(tokenizer, tmp_path):
    runs = [
        train(
            hf_gradkit.SFTTrainer,
            hf_gradkit.SFTConfig,
            tokenizer,
            tmp_path / str(bf16),
            text_dataset(),
            bf16=bf16,
            weighting="linupper",
            weighting_kwargs={"temperature": 0.4, "warmup_ratio": 0.0},
        )
        for bf16 in (False, True)
    ]
    for key in ("loss", "loss/unweighted", "weights/ess", "weights/max"):
        assert step_logs(runs[0], key) == pytest.approx(step_logs(runs[1], key), rel=0.05)
    assert all(parameter.dtype == torch.float32 for parameter in runs[1].model.parameters())


def test_lora_trains_the_adapter_with_weights(tokenizer, tmp_path):
    options = {"weighting": "linupper", "weighting_kwargs": {"temperature": 0.4, "warmup_ratio": 0.0}}
    lora = {"peft_config": LoraConfig(r=4, target_modules="all-linear")}
    weighted = train(
        hf_gradkit.SFTTrainer, hf_gradkit.SFTConfig, tokenizer, tmp_path / "w", text_dataset(), lora, **options
    )
    plain = train(hf_gradkit.SFTTrainer, hf_gradkit.SFTConfig, tokenizer, tmp_path / "p", text_dataset(), lora)
    moved = [
        name
        for (name, a), (_, b) in zip(weighted.model.named_parameters(), plain.model.named_parameters(), strict=True)
        if not torch.equal(a, b)
    ]
    assert moved
    assert all("lora_" in name for name in moved)


def test_evaluation_is_never_weighted(tokenizer, tmp_path):
    """The same model gives TRL's evaluation loss, with weights and columns on, and eval rows carry the columns."""
    options = {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 2, "learning_rate": 0.0}
    evaluation = {"eval_dataset": text_dataset(10, "weight", "source", seed=1)}
    theirs = train(trl.SFTTrainer, trl.SFTConfig, tokenizer, tmp_path / "t", text_dataset(), evaluation, **options)
    ours = train(
        hf_gradkit.SFTTrainer,
        hf_gradkit.SFTConfig,
        tokenizer,
        tmp_path / "o",
        text_dataset(24, "weight", "source"),
        evaluation,
        weighting="linupper",
        weight_column="weight",
        group_column="source",
        **options,
    )
    of_theirs, of_ours = ([e for e in logs_without_timings(t) if "eval_loss" in e] for t in (theirs, ours))
    assert of_theirs == of_ours
    assert math.isfinite(of_ours[0]["eval_loss"])


def test_mixture_of_experts_keeps_its_auxiliary_loss(tokenizer, tmp_path):
    """With nearly uniform weights, the router's loss is added as TRL adds it."""
    config = Qwen3MoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        moe_intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_experts=4,
        num_experts_per_tok=2,
        router_aux_loss_coef=0.5,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    runs = []
    for trainer, args, options in (
        (trl.SFTTrainer, trl.SFTConfig, {}),
        (
            hf_gradkit.SFTTrainer,
            hf_gradkit.SFTConfig,
            {"weighting": "linupper", "weighting_kwargs": {"temperature": 1e9, "warmup_ratio": 0.0}},
        ),
    ):
        torch.manual_seed(0)
        keywords = {"model": Qwen3MoeForCausalLM(config)}
        path = tmp_path / trainer.__module__
        runs.append(
            train(trainer, args, tokenizer, path, text_dataset(), keywords, gradient_accumulation_steps=2, **options)
        )
    assert step_logs(runs[0], "aux_loss") == pytest.approx(step_logs(runs[1], "aux_loss"), rel=1e-4)
    assert step_logs(runs[0], "loss") == pytest.approx(step_logs(runs[1], "loss"), rel=1e-5)
    assert parameter_gap(*runs) < 1e-5


def test_arguments_for_plain_transformers_weight_too(tokenizer, tmp_path):
    options = {"weighting": "linupper", "weighting_kwargs": {"temperature": 0.4, "warmup_ratio": 0.0}}
    as_sft = train(hf_gradkit.SFTTrainer, hf_gradkit.SFTConfig, tokenizer, tmp_path / "s", text_dataset(), **options)
    as_plain = train(
        hf_gradkit.SFTTrainer, hf_gradkit.TrainingArguments, tokenizer, tmp_path / "p", text_dataset(), **options
    )
    assert step_logs(as_plain, "weights/max") == step_logs(as_sft, "weights/max")
    assert parameter_gap(as_sft, as_plain) == 0


def test_the_warm_up_runs_no_extra_forward(tokenizer, tmp_path):
    model, forwards = tiny_llama(tokenizer, hidden_size=32), []
    model.model.register_forward_hook(lambda *args: forwards.append(torch.is_grad_enabled()))
    train(
        hf_gradkit.SFTTrainer,
        hf_gradkit.SFTConfig,
        tokenizer,
        tmp_path,
        text_dataset(),
        {"model": model},
        weighting="linupper",
        weighting_kwargs={"scope": "step", "warmup_ratio": 0.5},
    )
    assert forwards == [True, True, False, True, False, True]
