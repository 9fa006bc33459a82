"""Columns that accompany an example: they survive preparation, reach the batch, and never the model."""

import math

import pytest
import torch
from datasets import Dataset
from transformers import DataCollatorForLanguageModeling

import hf_gradkit
from helpers import dataset_of, make_rows, make_trainer, step_logs, text_dataset, train
from hf_gradkit.data.columns import INFO
from hf_gradkit.data.seen import SeenItems
from hf_gradkit.reporting import read_example_log

FORMS = {
    "text": (("text",), {}),
    "prompt and completion": (("prompt", "completion"), {}),
    "messages": (("messages",), {"assistant_only_loss": True}),
    "packed": (("text",), {"packing": True, "max_length": 64}),
    "packed, shuffled": (("text",), {"packing": True, "max_length": 64, "shuffle_dataset": True}),
    "padding free": (("text",), {"padding_free": True, "max_length": None}),
    "all columns kept": (("text",), {"remove_unused_columns": False}),
    "with a loader worker": (("text",), {"dataloader_num_workers": 1}),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_every_example_keeps_its_columns(form, streaming, tokenizer, tmp_path):
    columns, options = FORMS[form]
    dataset = dataset_of(24, *columns, "weight", "source", "uid")
    trainer = make_trainer(
        hf_gradkit.SFTTrainer,
        hf_gradkit.SFTConfig,
        tokenizer,
        tmp_path,
        dataset.to_iterable_dataset() if streaming else dataset,
        weight_column="weight",
        group_column="source",
        example_id_column="uid",
        example_log=True,
        **options,
    )
    rows, seen = make_rows(24), set()
    for batch in trainer.get_train_dataloader():
        info = batch.pop(INFO)
        for i in range(len(info)):
            row = rows[int(info.index[i])]
            assert (info.weight[i].item(), info.group[i], info.example_id[i]) == (
                row["weight"],
                row["source"],
                row["uid"],
            )
            if info.segments is None:
                tokens = batch["input_ids"][i][batch["attention_mask"][i].bool()]
            else:
                tokens = batch["input_ids"][0][info.segments == i]
            text = tokenizer.decode(tokens, skip_special_tokens=True)
            assert row["text"].replace(" ", "") == text.replace(" ", "")
            seen.add(row["uid"])
        trainer.model(**{k: v for k, v in batch.items() if k in ("input_ids", "attention_mask", "position_ids")})
        allowed = {"input_ids", "labels", "attention_mask", "position_ids", "seq_idx"}
        assert all(key in allowed or key.startswith(("cu_seq", "max_length")) for key in batch)
    assert len(seen) == 24


def test_a_split_document_gives_its_columns_to_every_piece(tokenizer, tmp_path):
    trainer = make_trainer(
        hf_gradkit.SFTTrainer,
        hf_gradkit.SFTConfig,
        tokenizer,
        tmp_path,
        text_dataset(24, "weight"),
        weight_column="weight",
        packing=True,
        packing_strategy="bfd_split",
        max_length=8,
    )
    rows, tokens = make_rows(24), 0
    pieces = [i for batch in trainer.get_train_dataloader() for i in batch[INFO].index.tolist()]
    for batch in trainer.get_train_dataloader():
        tokens += int((batch[INFO].segments >= 0).sum())
        for index, weight in zip(batch[INFO].index.tolist(), batch[INFO].weight.tolist(), strict=True):
            assert weight == rows[index]["weight"]
    assert len(pieces) > 24
    assert tokens == sum(len(tokenizer(row["text"])["input_ids"]) + 1 for row in rows)  # and the end token


@pytest.mark.parametrize("streaming", [False, True])
def test_example_log_has_one_row_per_example_and_epoch(streaming, tokenizer, tmp_path):
    dataset = text_dataset(10, "weight", "source", "uid")
    trainer = train(
        hf_gradkit.SFTTrainer,
        hf_gradkit.SFTConfig,
        tokenizer,
        tmp_path,
        dataset.to_iterable_dataset() if streaming else dataset,
        max_steps=6,
        per_device_train_batch_size=4,
        weighting="linupper",
        weighting_kwargs={"warmup_ratio": 0.0},
        weight_column="weight",
        group_column="source",
        example_id_column="uid",
        example_log=True,
    )
    log = read_example_log(str(tmp_path)).to_pylist()
    assert [sorted(row["example_id"] for row in log if row["epoch"] == e) for e in (0, 1)] == [
        [f"id-{i:04d}" for i in range(10)]
    ] * 2
    rows = {row["uid"]: row for row in make_rows(10)}
    for row in log:
        source = rows[row["example_id"]]
        assert row["group"] == source["source"]
        assert row["tokens"] == len(tokenizer(source["text"])["input_ids"])
        assert (row["weight"] == 0) == (source["weight"] == 0)
        assert 0 < row["loss"] < 10
    # The figures of the logs are those of the rows.
    for step in range(6):
        of_step = [row for row in log if row["step"] == step]
        assert step_logs(trainer, "weights/mean")[step] == pytest.approx(
            sum(row["weight"] for row in of_step) / len(of_step), rel=1e-5
        )
    groups = {row["group"] for row in log if row["step"] == 5}
    assert {k for k in trainer.state.log_history[5] if k.startswith("group_loss/")} == {
        f"group_loss/{group}" for group in groups
    }
    for group in groups:
        losses = [row["loss"] for row in log if row["step"] == 5 and row["group"] == group]
        assert trainer.state.log_history[5][f"group_loss/{group}"] == pytest.approx(sum(losses) / len(losses))


def test_a_fresh_run_sets_an_older_example_log_aside(tokenizer, tmp_path):
    for _ in range(2):
        train(
            hf_gradkit.SFTTrainer,
            hf_gradkit.SFTConfig,
            tokenizer,
            tmp_path,
            text_dataset(),
            max_steps=1,
            example_log=True,
        )
    assert len(read_example_log(str(tmp_path))) == 4
    assert len(list((tmp_path / "example_log-previous-1").glob("*.parquet"))) == 1


@pytest.mark.parametrize(
    ("weight", "problem"),
    [(-1.0, "is negative"), (math.nan, "is not finite"), (math.inf, "is not finite"), (None, "is not a number")],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_a_bad_weight_is_named_with_its_row(weight, problem, streaming, tokenizer, tmp_path):
    weights = [1.0] * 24
    weights[17] = weight
    dataset = Dataset.from_dict({"text": text_dataset()["text"], "weight": weights})
    with pytest.raises(ValueError, match=f"Row 17 has .* in `weight_column` 'weight', which {problem}"):
        train(
            hf_gradkit.SFTTrainer,
            hf_gradkit.SFTConfig,
            tokenizer,
            tmp_path,
            dataset.to_iterable_dataset() if streaming else dataset,
            weight_column="weight",
            max_steps=6,
        )


def test_weights_that_are_text(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="Row 0 has 'web' in `weight_column` 'source', which is not a number"):
        make_trainer(
            hf_gradkit.SFTTrainer,
            hf_gradkit.SFTConfig,
            tokenizer,
            tmp_path,
            text_dataset(8, "source"),
            weight_column="source",
        )


@pytest.mark.parametrize(("field", "value"), [("weight_column", "wieght"), ("group_column", "sorce")])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_missing_column_is_named_with_those_there_are(field, value, streaming, tokenizer, tmp_path):
    dataset = text_dataset(8, "weight", "source")
    part = (
        rf"`{field}` is '{value}', but the training data has no such column\. Did you mean '.*'\? Its columns: 'text'"
    )
    with pytest.raises(ValueError, match=part):
        make_trainer(
            hf_gradkit.SFTTrainer,
            hf_gradkit.SFTConfig,
            tokenizer,
            tmp_path,
            dataset.to_iterable_dataset() if streaming else dataset,
            **{field: value},
        )


def test_a_column_with_our_name(tokenizer, tmp_path):
    dataset = text_dataset(8).add_column("example_index", list(range(8)))
    with pytest.raises(ValueError, match="a name that hf_gradkit uses for itself"):
        make_trainer(hf_gradkit.SFTTrainer, hf_gradkit.SFTConfig, tokenizer, tmp_path, dataset, weighting="linupper")


def test_rows_of_an_epoch_are_counted_once():
    seen = SeenItems()
    tensor = torch.tensor
    assert seen.add(tensor([5, 3, 5]), tensor([5, 3, 5])).tolist() == [True, True, False]
    assert seen.add(tensor([3, 9000, -1, -1]), tensor([3, 9000, -1, -1])).tolist() == [False, True, True, True]
    # Packed: rows 20 and 21 hold two and one documents; row 20 comes again.
    assert seen.add(tensor([20, 20, 21]), tensor([1, 2, 3])).tolist() == [True] * 3
    assert seen.add(tensor([20, 20, 22]), tensor([1, 2, 4])).tolist() == [False, False, True]
    again = SeenItems(seen.state())
    assert again.add(tensor([21, 23]), tensor([3, 5])).tolist() == [False, True]


def test_a_format_with_chosen_columns_does_not_hide_ours(tokenizer, tmp_path):
    dataset = text_dataset(8, "weight").map(lambda row: tokenizer(row["text"]))
    dataset.set_format("torch", columns=["input_ids"])
    trainer = train(
        hf_gradkit.Trainer,
        hf_gradkit.TrainingArguments,
        tokenizer,
        tmp_path,
        dataset,
        trainer_kwargs={"data_collator": DataCollatorForLanguageModeling(tokenizer, mlm=False)},
        weight_column="weight",
        max_steps=2,
    )
    assert max(step_logs(trainer, "weights/max")) == 2.0


def test_an_evaluation_set_called_train_is_packed_as_usual(tokenizer, tmp_path):
    keywords = {"eval_dataset": {"train": text_dataset(8), "other": text_dataset(8, seed=1)}}
    options = {"packing": True, "max_length": 64, "weighting": "linupper", "eval_strategy": "steps", "eval_steps": 2}
    trainer = train(
        hf_gradkit.SFTTrainer,
        hf_gradkit.SFTConfig,
        tokenizer,
        tmp_path,
        text_dataset(),
        trainer_kwargs=keywords,
        max_steps=2,
        **options,
    )
    assert any("eval_train_loss" in entry for entry in trainer.state.log_history)


def test_a_sampler_with_replacement_loses_no_row(tokenizer, tmp_path):
    """Rows drawn again in the middle of an epoch are counted again: they are no padding."""

    class Again(hf_gradkit.SFTTrainer):
        def _get_train_sampler(self, dataset=None):
            return Zeros(24)

    trainer = train(
        Again, hf_gradkit.SFTConfig, tokenizer, tmp_path, text_dataset(), weighting="linupper", example_log=True
    )
    log = read_example_log(str(tmp_path)).to_pylist()
    assert len(log) == 16
    assert {row["example_id"] for row in log} == {0}
    assert len(trainer._weigher.window.losses) == 16


class Zeros(torch.utils.data.Sampler):
    """Draws row 0 over and over."""

    def __init__(self, n):
        self.n = n

    def __iter__(self):
        return iter([0] * self.n)

    def __len__(self):
        return self.n
