"""Wrong input ends early, with a sentence that names the field, the value and the remedy; nothing is skipped."""

import logging
import re
from types import SimpleNamespace

import pytest
import torch
from accelerate.parallelism_config import ParallelismConfig
from accelerate.utils import DistributedType
from datasets import Dataset, IterableDataset
from transformers import T5Config, T5ForConditionalGeneration, TrainerCallback

import hf_gradkit
from helpers import make_trainer, parameter_gap, text_dataset, train
from hf_gradkit import _compat
from hf_gradkit._backends import check_sharding
from hf_gradkit.data.columns import ExampleInfo
from hf_gradkit.data.tiny import tiny_llama
from hf_gradkit.reporting import read_example_log
from hf_gradkit.trainers.checks import check_processes, check_world
from hf_gradkit.trainers.sft_trainer import _by_example

SFT = (hf_gradkit.SFTTrainer, hf_gradkit.SFTConfig)


@pytest.mark.parametrize("config", [hf_gradkit.SFTConfig, hf_gradkit.TrainingArguments])
@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"weighting": "linuper"}, "no weighting method 'linuper'. Did you mean 'linupper'?"),
        ({"weighting": None}, "`weighting` must be a name such as 'linupper' or 'none', but it is None"),
        ({"weighting": "linupper", "weighting_kwargs": {"scop": "step"}}, "Did you mean 'scope'?"),
        ({"weighting": "linupper", "weighting_kwargs": {"temperature": 0}}, "`temperature` must be above 0"),
        ({"weighting": "linupper", "weighting_kwargs": '{"temperature": 0}'}, "`temperature` must be above 0"),
        ({"weighting": "linupper", "weighting_kwargs": "temperature=1"}, "is not JSON"),
        ({"weighting": "linupper", "weighting_kwargs": "[1]"}, "must be a JSON object such as"),
        (
            {"weighting": "linupper", "weighting_kwargs": {"low_quantile": 0.9, "high_quantile": 0.5}},
            "but they are 0.9 and 0.5",
        ),
        ({"weighting": "linupper", "weighting_kwargs": {"max_weight": 1}}, "`max_weight` must be above 1"),
        ({"weighting_kwargs": {"window": 8}}, "`weighting` is 'none', so it has no effect"),
        ({"normalize_weight_column": True}, "there is no `weight_column`"),
        ({"example_id_column": "uid"}, "no example log is written"),
        ({"weighting": "linupper", "label_smoothing_factor": 0.1}, "`label_smoothing_factor` is set to 0.1 together"),
        (
            {"weight_column": "weight", "label_smoothing_factor": 0.1},
            "`label_smoothing_factor` is set to 0.1 together",
        ),
        ({"weighting": "linupper", "use_liger_kernel": True}, "`use_liger_kernel` is set to True together"),
        ({"weighting": "linupper", "torch_compile": True}, "`torch_compile` is set to True together"),
        ({"weighting": "linupper", "auto_find_batch_size": True}, "`auto_find_batch_size` is set to True together"),
    ],
)
def test_configuration(config, options, part, tmp_path):
    with pytest.raises(ValueError, match=re.escape(part)):
        config(output_dir=str(tmp_path), use_cpu=True, bf16=False, **options)


def test_wrapped_packing(tmp_path):
    with pytest.raises(ValueError, match="'wrapped' cuts documents"):
        hf_gradkit.SFTConfig(str(tmp_path), weighting="linupper", packing=True, packing_strategy="wrapped")


def test_json_and_mappings_are_the_same(tmp_path):
    options = {"weighting": "linupper", "use_cpu": True, "bf16": False}
    as_json = hf_gradkit.SFTConfig(str(tmp_path), weighting_kwargs='{"temperature": 0.4}', **options)
    assert as_json.weighting_kwargs == {"temperature": 0.4}


@pytest.mark.parametrize("weighting", ["none", "linupper"])
@pytest.mark.parametrize("streaming", [False, True])
def test_empty_data(weighting, streaming, tokenizer, tmp_path):
    if streaming:
        dataset = IterableDataset.from_generator(lambda: iter(()))
    else:
        dataset = Dataset.from_dict({"text": []})
    with pytest.raises(ValueError, match="The training data has no rows"):
        make_trainer(*SFT, tokenizer, tmp_path, dataset, weighting=weighting)


def test_every_example_masked_by_truncation(tokenizer, tmp_path):
    dataset = Dataset.from_dict({"prompt": ["the cat sat on the mat"] * 4, "completion": ["dog"] * 4})
    with pytest.raises(ValueError, match="preparation dropped them all"):
        make_trainer(*SFT, tokenizer, tmp_path, dataset, weighting="linupper", max_length=4)


def test_every_example_masked_in_the_data(tokenizer, tmp_path):
    ids = tokenizer(["the cat sat"] * 4)["input_ids"]
    dataset = Dataset.from_dict({"input_ids": ids, "labels": [[-100] * len(row) for row in ids]})
    with pytest.raises(ValueError, match="Every example of the training data is masked"):
        make_trainer(*SFT, tokenizer, tmp_path, dataset, weighting="linupper", max_length=None)


def test_an_example_without_labels_among_others_is_left_out(tokenizer, tmp_path):
    ids = tokenizer(list(text_dataset(8)["text"]))["input_ids"]
    labels = [[-100] * len(row) if i == 3 else row for i, row in enumerate(ids)]
    dataset = Dataset.from_dict({"input_ids": ids, "labels": labels})
    trainer = train(
        *SFT, tokenizer, tmp_path, dataset, weighting="linupper", max_length=None, max_steps=2, example_log=True
    )
    assert trainer.state.global_step == 2
    assert sorted(read_example_log(str(tmp_path))["example_id"].to_pylist()) == [0, 1, 2, 4, 5, 6, 7]


@pytest.mark.parametrize("scope", ["micro_batch", "running", "step"])
def test_a_loss_that_is_not_finite_stops_before_the_optimizer(scope, tokenizer, tmp_path):
    """Row 9 alone holds a token whose embedding is not finite."""
    texts = [*text_dataset(16)["text"]]
    texts[9] = "zzz"
    token = tokenizer("zzz")["input_ids"][0]
    model = tiny_llama(tokenizer, hidden_size=32)
    with torch.no_grad():
        model.model.embed_tokens.weight[token] = float("inf")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    steps = []

    class Count(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            steps.append(state.global_step)
            before.update({name: value.clone() for name, value in model.state_dict().items()})

        def on_optimizer_step(self, args, state, control, **kwargs):
            before.update({name: value.clone() for name, value in model.state_dict().items()})

    with pytest.raises(FloatingPointError, match=r"rows \[9\] of the training data"):
        train(
            *SFT,
            tokenizer,
            tmp_path,
            Dataset.from_dict({"text": texts}),
            trainer_kwargs={"model": model, "callbacks": [Count()]},
            weighting="linupper",
            weighting_kwargs={"scope": scope, "warmup_ratio": 0.0},
        )
    assert len(steps) < 4
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_one_example_in_the_world_warns_that_the_method_does_nothing(tokenizer, tmp_path, caplog):
    options = {"per_device_train_batch_size": 1, "max_steps": 3}
    with caplog.at_level(logging.WARNING):
        weighted = train(
            *SFT,
            tokenizer,
            tmp_path / "w",
            text_dataset(),
            weighting="linupper",
            weighting_kwargs={"scope": "micro_batch", "warmup_ratio": 0.0},
            **options,
        )
    assert caplog.text.count("its weight is always 1 and weighting does nothing") == 1
    plain = train(*SFT, tokenizer, tmp_path / "p", text_dataset(), **options)
    assert parameter_gap(weighted, plain) == 0


def test_streams_need_one_loader_worker(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="`dataloader_num_workers` is 2"):
        make_trainer(
            *SFT,
            tokenizer,
            tmp_path,
            text_dataset().to_iterable_dataset(),
            weighting="linupper",
            dataloader_num_workers=2,
        )


def test_a_loss_function_for_the_whole_batch(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="`compute_loss_func` returns one number for the batch"):
        make_trainer(
            *SFT,
            tokenizer,
            tmp_path,
            text_dataset(),
            {"compute_loss_func": lambda outputs, labels, num_items_in_batch=None: outputs.logits.sum()},
            weighting="linupper",
        )


def test_replicas_that_were_meant_to_train_together(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were started, but this one would train alone"):
        check_processes(SimpleNamespace(world_size=1))


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"distributed_type": DistributedType.MEGATRON_LM}, "not tested under MEGATRON_LM yet"),
        ({"parallelism_config": ParallelismConfig()}, "tensor, context and sequence parallelism split examples"),
    ],
)
def test_backends_that_are_not_tested_refuse(changed, part, tokenizer, tmp_path):
    trainer = make_trainer(*SFT, tokenizer, tmp_path, text_dataset(), weighting="linupper")
    world = {"distributed_type": DistributedType.NO, "parallelism_config": None, **changed}
    trainer.accelerator = SimpleNamespace(**world)
    with pytest.raises(ValueError, match=part):
        trainer._check_combination()


def test_the_first_version_of_fsdp():
    accelerator = SimpleNamespace(distributed_type=DistributedType.FSDP, is_fsdp2=False)
    with pytest.raises(ValueError, match=r"first version of FSDP, which hf-gradkit does not support.*fsdp_version: 2"):
        check_sharding(accelerator)


def test_dispatched_batches_cannot_be_cut(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="`dispatch_batches` is True"):
        make_trainer(
            *SFT,
            tokenizer,
            tmp_path,
            text_dataset(),
            weighting="linupper",
            accelerator_config={"dispatch_batches": True},
        )


def test_a_run_that_fails_early_leaves_an_older_state_alone(tokenizer, tmp_path):
    train(*SFT, tokenizer, tmp_path, text_dataset(), weighting="linupper", max_steps=2)
    state = (tmp_path / "trainer_state.json").read_text()
    trainer = make_trainer(*SFT, tokenizer, tmp_path, text_dataset(), weighting="linupper")
    with pytest.raises(ValueError, match="checkpoint"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "no_such_checkpoint"))
    assert (tmp_path / "trainer_state.json").read_text() == state


def test_images_are_refused(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(_compat, "has_vision_data", lambda trainer: True)
    with pytest.raises(ValueError, match="The training data has images"):
        make_trainer(*SFT, tokenizer, tmp_path, text_dataset(), weighting="linupper")


def test_several_gpus_in_one_process():
    world = SimpleNamespace(distributed_type=DistributedType.NO, parallelism_config=None)
    with pytest.raises(ValueError, match="2 GPUs are visible to one process"):
        check_world(world, n_gpu=2)


def test_prompt_learning_in_a_flattened_batch():
    info = ExampleInfo(torch.arange(2), torch.arange(2), torch.ones(2), segments=torch.tensor([0, 0, 0, 1, 1]))
    log_probs = torch.zeros(1, 4 + 3)  # three virtual tokens before the five
    with pytest.raises(ValueError, match="scored 7 positions of 4 in a packed row, as with prompt learning"):
        _by_example(log_probs, log_probs != 0, info)


@pytest.mark.parametrize("max_length", [None, 64])
def test_a_stream_in_which_every_example_is_masked(max_length, tokenizer, tmp_path):
    ids = tokenizer(["the cat sat"] * 4)["input_ids"]
    dataset = Dataset.from_dict({"input_ids": ids, "labels": [[-100] * len(row) for row in ids]})
    with pytest.raises(ValueError, match=r"masked|preparation dropped them all"):
        train(*SFT, tokenizer, tmp_path, dataset.to_iterable_dataset(), weighting="linupper", max_length=max_length)


def test_encoder_decoder_models_need_a_loss_of_their_own(tokenizer, tmp_path):
    config = T5Config(vocab_size=len(tokenizer), d_model=32, d_ff=64, num_layers=1, num_heads=2, d_kv=16)
    dataset = Dataset.from_dict({"input_ids": tokenizer(["the cat sat"] * 4)["input_ids"]})
    with pytest.raises(ValueError, match="is an encoder-decoder model"):
        make_trainer(
            hf_gradkit.Trainer,
            hf_gradkit.TrainingArguments,
            tokenizer,
            tmp_path,
            dataset.add_column("labels", list(dataset["input_ids"])),
            {"model": T5ForConditionalGeneration(config)},
            weighting="linupper",
        )
