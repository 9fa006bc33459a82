"""The weighted loss of SFTTrainer against batch-size-1 autograd, in every form the data and the loss can have."""

import copy
import math

import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

import hf_gradkit
from helpers import dataset_of, logs_without_timings, make_trainer, parameter_gap, step_logs, text_dataset, train
from hf_gradkit.data.columns import INFO
from hf_gradkit.weighting import loss_weights

FORMS = {
    "text": (("text",), {}),
    "prompt and completion": (("prompt", "completion"), {}),
    "assistant only": (("messages",), {"assistant_only_loss": True}),
    "dft": (("text",), {"loss_type": "dft"}),
    "padding free": (("text",), {"padding_free": True, "max_length": None}),
    "padding free, padded to a multiple": (
        ("text",),
        {"padding_free": True, "max_length": None, "pad_to_multiple_of": 16},
    ),
    "packed": (("text",), {"packing": True, "max_length": 64, "per_device_train_batch_size": 2}),
    "packed and split": (
        ("text",),
        {"packing": True, "packing_strategy": "bfd_split", "max_length": 24, "per_device_train_batch_size": 2},
    ),
}


def gradient_of(trainer, batches, num_items):
    """Return the gradient that the trainer's own training step leaves in float64."""
    trainer.model.zero_grad()
    trainer.current_gradient_accumulation_steps = len(batches)
    for batch in batches:
        trainer.training_step(trainer.model, dict(batch), num_items)
    return torch.cat([p.grad.flatten().clone() for p in trainer.model.parameters() if p.grad is not None])


def documents_of(batch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the tokens and labels of each example of a batch, whatever its form."""
    info, documents = batch[INFO], []
    for i in range(len(info)):
        if info.segments is None:
            kept = batch["attention_mask"][i].bool()
            documents.append((batch["input_ids"][i][kept], batch["labels"][i][kept]))
        else:
            kept = info.segments == i
            labels = batch["labels"][0][kept].clone()
            documents.append((batch["input_ids"][0][kept], labels))
    return documents


def oracle(model, documents, multipliers, divisor, loss_type, sequence):
    """Weighted loss and its gradient, one example at a time."""
    model.zero_grad()
    total = 0.0
    for (tokens, labels), u in zip(documents, multipliers, strict=True):
        logits = model(input_ids=tokens[None]).logits[0, :-1]
        log_probs = logits.log_softmax(-1).gather(1, tokens[1:, None])[:, 0]
        kept = labels[1:] != -100
        losses = -log_probs[kept]
        if loss_type == "dft":
            losses = losses * log_probs[kept].exp().detach()
        loss = u * (losses.mean() if sequence else losses.sum()) / divisor
        loss.backward()
        total += loss.item()
    return total, torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("normalization", ["token", "sequence"])
@pytest.mark.parametrize("form", FORMS)
def test_loss_and_gradient_agree_with_one_example_at_a_time(form, normalization, tokenizer, tmp_path):
    columns, options = FORMS[form]
    trainer = make_trainer(
        hf_gradkit.SFTTrainer,
        hf_gradkit.SFTConfig,
        tokenizer,
        tmp_path,
        dataset_of(24, *columns, "weight"),
        weighting="linupper",
        weighting_kwargs={
            "scope": "micro_batch",
            "temperature": 0.4,
            "warmup_ratio": 0.0,
            "normalization": normalization,
        },
        weight_column="weight",
        **options,
    )
    trainer.model.double()
    model = copy.deepcopy(trainer.model)
    model.forward = type(model).forward.__get__(model)  # without TRL's fused head: logits, the long way
    batches, num_items = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 2, torch.device("cpu"))
    ours = gradient_of(trainer, batches, num_items)

    gradients, losses, n_examples = 0.0, 0.0, sum(len(batch[INFO]) for batch in batches)
    for batch in batches:
        documents = documents_of(batch)
        with torch.no_grad():
            means = torch.tensor(
                [oracle_loss(model, tokens, labels) for tokens, labels in documents], dtype=torch.float64
            )
        multipliers = loss_weights(means, "linupper", 0.4) * batch[INFO].weight
        sequence = normalization == "sequence"
        value, gradient = oracle(
            model,
            documents,
            multipliers,
            n_examples if sequence else num_items.item(),
            trainer.args.loss_type,
            sequence,
        )
        losses, gradients = losses + value, gradients + gradient
    assert len({round(m, 3) for m in multipliers.tolist()}) > 1  # the weights were not all alike
    # The fused head gives float32 losses: these are about .1 apart, so that their rounding moves weights by 1e-5.
    assert (ours - gradients).norm() < 1e-4 * gradients.norm()


def oracle_loss(model, tokens, labels) -> float:
    logits = model(input_ids=tokens[None]).logits[0, :-1]
    kept = labels[1:] != -100
    return torch.nn.functional.cross_entropy(logits[kept], tokens[1:][kept]).item()


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


def test_normalizing_by_weights_makes_their_scale_irrelevant(tokenizer, tmp_path):
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
