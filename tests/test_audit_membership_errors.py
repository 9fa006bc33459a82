"""What the membership audit refuses, before it scores anything."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from audit_helpers import LENGTH, record_tokenizer, records
from hf_gradkit.audit import audit_membership, hold_out
from hf_gradkit.data.tiny import tiny_llama
from hf_gradkit.scoring import SFTFormat


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("base"), record_tokenizer()
    torch.manual_seed(0)
    tiny_llama(tokenizer, hidden_size=64).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def full(base, tmp_path_factory):
    """A model with the record of a hold-out; that it was never trained makes no difference to what is refused."""
    folder = tmp_path_factory.mktemp("models") / "full"
    shutil.copytree(base, folder)
    hold_out(records(260), 60 / 260, output_dir=folder, id_column="uid")
    return str(folder)


def run(model, tmp_path, dataset=None, **options):
    dataset = records(260) if dataset is None else dataset
    options = {"layout": SFTFormat(max_length=LENGTH), "cache_folder": tmp_path / "cache", **options}
    return audit_membership(model, dataset, **options)


def test_members_among_the_non_members(full, tmp_path):
    members = records(40, seed=5)
    with pytest.raises(
        ValueError, match=r"3 non-members are members as well, token by token \(hashes of some: \w{12}, "
    ):
        run(full, tmp_path, members, non_members=Dataset.from_list([*members.select(range(3)), *records(5, seed=3)]))


def test_examples_without_a_token(full, tmp_path):
    others = records(5, seed=3)
    empty = Dataset.from_list([{"text": ""}])
    with pytest.raises(ValueError, match=r"examples have no token to predict .*: \[0\]"):
        run(full, tmp_path, empty, non_members=others.select_columns("text"))
    nothing = Dataset.from_list([{"text": None}, {"text": "a"}])
    with pytest.raises(ValueError, match="Row 0 of the data has an empty 'text'"):
        run(full, tmp_path, nothing, non_members=others.select_columns("text"))
    with pytest.raises(ValueError, match="There are no non-members"):
        run(full, tmp_path, others, non_members=others.select([]))
    with pytest.raises(ValueError, match="The members have the columns 'text' and the non-members 'prompt', 'comp"):
        run(full, tmp_path, others, non_members=Dataset.from_list([{"prompt": "a", "completion": "b"}]))


def test_another_tokenizer(full, base, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="The tokenizer that was given is another one than the model"):
        run(full, tmp_path, tokenizer=tokenizer)
    other = tmp_path / "other"
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(other)
    tokenizer.save_pretrained(other)
    with pytest.raises(ValueError, match=r"The vocabulary of the reference .* differs from the model's: \d+ of \d+"):
        run(full, tmp_path, reference_model=str(other))
    (other / "tokenizer.json").unlink()
    (other / "tokenizer_config.json").unlink()
    small = AutoModelForCausalLM.from_pretrained(base)
    small.resize_token_embeddings(50)
    small.save_pretrained(other)
    with pytest.raises(ValueError, match="The reference is no model before this fine-tuning: The tokenizer "):
        run(full, tmp_path, reference_model=str(other))
    with pytest.raises(ValueError, match="No tokenizer was saved with the model"):
        run(str(other), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attacks": ["flora"]}, "The attack 'flora' compares the target with the model before fine-tuning"),
        (
            {"false_positive_rates": (0.1, 1.0)},
            "`false_positive_rates` must lie above 0 and below 1, but 1.0",
        ),
        ({"bootstrap_rounds": 1}, "`bootstrap_rounds` must be a whole number of at least 2"),
        ({"max_examples": 1}, "`max_examples` must be a whole number of at least 2"),
        ({"dtype": "bf16"}, "`dtype` is 'bf16'. Did you mean"),
        ({"document_column": "wards"}, "`document_column` is 'wards', .* Did you mean 'ward'"),
        ({"batch_size": 0}, "`batch_size` must be an integer of at least 1"),
    ],
)
def test_options_that_are_wrong(options, message, full, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(full, tmp_path, **options)


@pytest.mark.parametrize(
    ("environment", "options", "message"),
    [
        ({"FSDP_VERSION": "1"}, {}, "the first version of FSDP, which hf-gradkit does not support"),
        ({}, {"model_init_kwargs": {"device_map": "auto"}}, r"`device_map` spreads .* configuration \(FSDP2\) splits"),
        (
            {},
            {"attacks": ["loss", "step_ratio"]},
            "Under FSDP2 no process has the whole gradient .* 'step_ratio' need",
        ),
    ],
)
def test_a_launch_that_splits_the_model(environment, options, message, full, tmp_path, monkeypatch):
    """What cannot be had of one; what can is in test_audit_processes.py."""
    for name, value in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("hf_gradkit.scoring.sharding.world", lambda: SimpleNamespace(num_processes=2))
    with pytest.raises(ValueError, match=message):
        run(full, tmp_path, **options)


def test_a_stream(full, tmp_path):
    with pytest.raises(ValueError, match="`dataset` is a IterableDataset"):
        run(full, tmp_path, records(5).to_iterable_dataset())
