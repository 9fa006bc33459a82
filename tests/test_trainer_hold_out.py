"""`hold_out_fraction` of every trainer: drawn before training, recorded beside the model, never trained on."""

import json

import pytest
import torch
import trl
from datasets import Dataset, Image

import hf_gradkit
from helpers import dataset_of, logs_without_timings, make_rows, make_trainer, parameter_gap, text_dataset, train
from hf_gradkit.audit import hold_out
from hf_gradkit.cli import main
from hf_gradkit.data.hold_out import HoldOutRecord, written_sides
from hf_gradkit.data.loading import load_split
from hf_gradkit.data.tiny import tiny_llama
from hf_gradkit.reporting import read_example_log
from pair_helpers import pairs, save_policy
from results import Results

SFT = (hf_gradkit.SFTTrainer, hf_gradkit.SFTConfig)


def sft(tokenizer, folder, data, **options):
    return make_trainer(*SFT, tokenizer, folder, data, **{"hold_out_fraction": 0.25, **options})


def logged(folder) -> set[str]:
    """Return the ids of the rows that were trained on."""
    return set(read_example_log(folder)["example_id"].to_pylist())


def assert_split(folder, data, column: str, trained, evaluated) -> HoldOutRecord:
    """Assert that the record, the files and the trainer's own data say the same, and return the record."""
    record = HoldOutRecord.read(folder)
    train_rows, held = record.split(data)
    assert len(train_rows) + len(held) == len(data)
    assert not set(train_rows[column]) & set(held[column])
    files = [load_split(str(path), "train") for path in written_sides(folder)]
    assert [sorted(side[column]) for side in files] == [sorted(train_rows[column]), sorted(held[column])]
    assert len(trained) == len(train_rows)
    assert len(evaluated) == len(held)
    return record


def test_every_trainer_holds_out(tokenizer, tmp_path):
    texts = text_dataset(24, "uid")
    of = sft(tokenizer, tmp_path / "sft", texts)
    record = assert_split(tmp_path / "sft", texts, "uid", of.train_dataset, of.eval_dataset)
    assert (record.fraction, record.seed, int(record.held_out.sum())) == (0.25, 0, 6)

    tokens = texts.map(lambda row: {"input_ids": (ids := tokenizer(row["text"])["input_ids"]), "labels": ids})
    arguments = hf_gradkit.TrainingArguments(str(tmp_path / "plain"), hold_out_fraction=0.25, use_cpu=True, bf16=False)
    of = hf_gradkit.Trainer(tiny_llama(tokenizer, hidden_size=32), arguments, train_dataset=tokens)
    assert_split(tmp_path / "plain", tokens, "uid", of.train_dataset, of.eval_dataset)

    policy, data = save_policy(tmp_path / "policy", tokenizer), pairs(20, "uid")
    common = {"hold_out_fraction": 0.25, "use_cpu": True, "bf16": False, "report_to": "none"}
    of = hf_gradkit.DPOTrainer(policy, args=hf_gradkit.DPOConfig(str(tmp_path / "dpo"), **common), train_dataset=data)
    assert_split(tmp_path / "dpo", data, "uid", of.train_dataset, of.eval_dataset)
    reward = hf_gradkit.RewardConfig(str(tmp_path / "reward"), **common)
    of = hf_gradkit.RewardTrainer(policy, reward, None, data, processing_class=tokenizer)
    assert_split(tmp_path / "reward", data, "uid", of.train_dataset, of.eval_dataset)


def test_off_is_off(tokenizer, tmp_path):
    trainer = make_trainer(*SFT, tokenizer, tmp_path, text_dataset(24))
    assert len(trainer.train_dataset) == 24
    assert trainer.eval_dataset is None
    assert HoldOutRecord.read(tmp_path) is None


def test_held_out_rows_are_evaluated_on_and_never_trained_on(tokenizer, tmp_path):
    """With columns of weights and groups, which the evaluation data has as well."""
    data = text_dataset(24, "weight", "source", "uid")
    columns = {"weight_column": "weight", "group_column": "source", "example_id_column": "uid", "example_log": True}
    trainer = sft(tokenizer, tmp_path, data, max_steps=-1, num_train_epochs=2, eval_strategy="epoch", **columns)
    trainer.train()
    record = HoldOutRecord.read(tmp_path)
    held = {uid for uid, out in zip(record.ids, record.held_out, strict=True) if out}
    assert logged(tmp_path) == set(data["uid"]) - held
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(losses) == 2
    plain = trl.SFTTrainer(
        model=trainer.model,
        args=trl.SFTConfig(str(tmp_path / "plain"), use_cpu=True, bf16=False, report_to="none"),
        eval_dataset=data.filter(lambda row: row["uid"] in held).select_columns("text"),
        train_dataset=data.select_columns("text"),
        processing_class=tokenizer,
    )
    assert plain.evaluate()["eval_loss"] == pytest.approx(losses[-1], rel=1e-5)


def test_it_trains_as_on_rows_that_were_held_out_by_hand(tokenizer, tmp_path):
    data = text_dataset(24, "weight")
    options = {"weight_column": "weight"}
    ours = train(*SFT, tokenizer, tmp_path / "a", data, hold_out_fraction=0.25, hold_out_seed=3, **options)
    by_hand = train(*SFT, tokenizer, tmp_path / "b", hold_out(data, 0.25, seed=3).train, **options)
    assert parameter_gap(ours, by_hand) == 0
    assert logs_without_timings(ours) == logs_without_timings(by_hand)


def test_other_evaluation_data_stays(tokenizer, tmp_path):
    given = {"eval_dataset": text_dataset(5, seed=9)}
    trainer = make_trainer(*SFT, tokenizer, tmp_path, text_dataset(24), given, hold_out_fraction=0.25)
    assert len(trainer.eval_dataset) == 5
    assert len(trainer.train_dataset) == 18


def test_the_monitor_compares_with_what_is_held_out(tokenizer, tmp_path):
    options = {"monitors": ["privacy_audit"], "max_steps": -1, "num_train_epochs": 1}
    trainer = sft(tokenizer, tmp_path / "run", text_dataset(24), **options)
    trainer.train()
    line = json.loads((tmp_path / "run" / "privacy_audit.jsonl").read_text().splitlines()[-1])
    assert line["privacy_audit/held_out_loss"] == pytest.approx(trainer.evaluate()["eval_loss"], rel=1e-4)
    given = {"eval_dataset": text_dataset(5, seed=9)}
    with pytest.raises(ValueError, match="but that is not what `hold_out_fraction` holds out"):
        make_trainer(*SFT, tokenizer, tmp_path, text_dataset(24), given, hold_out_fraction=0.25, **options)


def test_a_resumed_run_has_the_same_hold_out(tokenizer, tmp_path):
    data = text_dataset(24, "weight")
    saving = {"save_strategy": "steps", "save_steps": 2, "hold_out_fraction": 0.25, "weight_column": "weight"}
    whole = train(*SFT, tokenizer, tmp_path, data, **saving)
    before = (tmp_path / "_hold_out" / "rows.parquet").stat().st_mtime_ns
    resumed = train(*SFT, tokenizer, tmp_path, data, resume=str(tmp_path / "checkpoint-2"), **saving)
    assert parameter_gap(whole, resumed) == 0
    assert (tmp_path / "_hold_out" / "rows.parquet").stat().st_mtime_ns == before  # it was not drawn anew
    sft(tokenizer, tmp_path, data.shuffle(seed=1))  # the same rows in another order are the same
    for other, options in (
        (data, {"hold_out_fraction": 0.5}),
        (data, {"hold_out_seed": 1}),
        (data.select(range(20)), {}),
    ):
        with pytest.raises(ValueError, match=r"record of another hold-out \(6 of 24 rows, fraction 0.25, seed 0"):
            sft(tokenizer, tmp_path, other, **options)


def test_files_that_are_missing_are_written(tokenizer, tmp_path):
    data = text_dataset(24)
    hold_out(data, 0.25, output_dir=tmp_path)  # the record alone
    assert written_sides(tmp_path) is None
    sft(tokenizer, tmp_path, data)
    assert written_sides(tmp_path) is not None


def test_a_filter_chooses_before_rows_are_held_out(tokenizer, tmp_path):
    """Otherwise the filter's choice would tell members from non-members."""
    data = pairs(40, "uid")
    arguments = hf_gradkit.DPOConfig(
        str(tmp_path / "run"),
        data_filter="length",
        data_filter_kwargs={"fraction": 0.5},
        hold_out_fraction=0.25,
        use_cpu=True,
        bf16=False,
        report_to="none",
    )
    trainer = hf_gradkit.DPOTrainer(save_policy(tmp_path / "policy", tokenizer), args=arguments, train_dataset=data)
    assert len(trainer.train_dataset) == 15
    train_rows, held = (load_split(str(path), "train") for path in written_sides(tmp_path / "run"))
    assert (len(train_rows), len(held)) == (15, 5)
    lengths = {row["uid"]: len(row["chosen"]) for row in data}
    left_out = set(data["uid"]) - set(train_rows["uid"]) - set(held["uid"])
    assert len(left_out) == 20
    shares = [sum(lengths[uid] for uid in uids) / len(uids) for uids in (left_out, [*train_rows["uid"], *held["uid"]])]
    assert shares[0] < shares[1]  # the shorter pairs are on neither side


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hold_out_fraction": 1.0}, "`hold_out_fraction` must be above 0 and below 1, but it is 1.0"),
        ({"hold_out_fraction": "0.1"}, "`hold_out_fraction` must be above 0 and below 1, but it is '0.1'"),
        ({"hold_out_fraction": True}, "`hold_out_fraction` must be above 0 and below 1, but it is True"),
        ({"hold_out_seed": 0.5}, "`hold_out_seed` must be a whole number, but it is 0.5"),
    ],
)
@pytest.mark.parametrize("name", ["SFTConfig", "TrainingArguments", "DPOConfig", "RewardConfig"])
def test_options_that_cannot_be(name, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        getattr(hf_gradkit, name)(str(tmp_path), use_cpu=True, bf16=False, **options)


def test_data_that_cannot_be_held_out(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="but the training data is a IterableDataset"):
        sft(tokenizer, tmp_path, text_dataset(24).to_iterable_dataset())
    arguments = hf_gradkit.TrainingArguments(str(tmp_path), hold_out_fraction=0.5, use_cpu=True, bf16=False)
    tensors = torch.utils.data.TensorDataset(torch.ones(4, 3))
    with pytest.raises(ValueError, match="but the training data is a TensorDataset"):
        hf_gradkit.Trainer(tiny_llama(tokenizer, hidden_size=32), arguments, train_dataset=tensors)
    with pytest.raises(ValueError, match="a hold-out needs at least 2"):
        sft(tokenizer, tmp_path, Dataset.from_list([{"text": "the cat sat"}] * 5))
    pictures = text_dataset(4).add_column("picture", [None] * 4).cast_column("picture", Image())
    with pytest.raises(ValueError, match="The column 'picture' has images"):
        hold_out(pictures, 0.5)
    assert HoldOutRecord.read(tmp_path) is None


def test_from_a_yaml_to_a_sound_audit(tokenizer, tmp_path):
    """A file without a test split: what is held out is evaluated on, and audited without being named."""
    tiny_llama(tokenizer, hidden_size=32).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    dataset_of(40, "text", "uid").to_json(tmp_path / "data.jsonl")
    config = {
        "model_name_or_path": str(tmp_path / "base"),
        "dataset_name": str(tmp_path / "data.jsonl"),
        "output_dir": str(tmp_path / "run"),
        "hold_out_fraction": 0.25,
        "eval_strategy": "epoch",
        "num_train_epochs": 1,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
        "activation_checkpointing": False,
    }
    (tmp_path / "sft.yaml").write_text(json.dumps(config))  # JSON is YAML
    assert main.main(["sft", "--config", str(tmp_path / "sft.yaml"), "--hold_out_seed", "2"]) == 0
    assert HoldOutRecord.read(tmp_path / "run").seed == 2
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert any("eval_loss" in entry for entry in state["log_history"])
    options = ["--use_cpu", "true", "--bootstrap_rounds", "20"]
    assert main.main(["audit", "membership", "--model_name_or_path", str(tmp_path / "run"), *options]) == 0
    figures = json.loads((tmp_path / "run" / "_audit" / "membership.json").read_text())
    assert figures["unsound"] is None
    assert (figures["members"], figures["non_members"]) == (30, 10)
    assert main.main(["sft", "--config", str(tmp_path / "sft.yaml"), "--dataset_test_split", "nowhere"]) == 2


# ---- several processes --------------------------------------------------------------------------------------------


@pytest.mark.multiprocess
def test_two_processes_hold_the_same_rows_out(tmp_path):
    data = Dataset.from_list([{"text": row["text"], "uid": row["uid"]} for row in make_rows(33)])
    data.save_to_disk(tmp_path / "data")
    common = {
        "hold_out_fraction": 0.25,
        "save_strategy": "steps",
        "save_steps": 2,
        "ddp_find_unused_parameters": False,
    }
    common |= {"max_steps": -1, "num_train_epochs": 2, "per_device_train_batch_size": 2}
    folder = str(tmp_path / "run")
    cases = [
        {"name": "first", "folder": folder, "options": common},
        {"name": "resumed", "folder": folder, "options": common, "resume": f"{folder}/checkpoint-4"},
        {"name": "other", "folder": folder, "options": {**common, "hold_out_seed": 1}},
        {"name": "last", "folder": str(tmp_path / "again"), "options": common},
    ]
    results = Results("hold_out_cases.py", tmp_path)
    results.run(cases)
    expected = hold_out(data, 0.25, id_column="uid")
    for name in ("first", "resumed", "last"):
        for rank in (0, 1):
            assert results.of(name, rank) == {"rows": len(expected.train), "evaluated": len(expected.held_out)}
    for rank in (0, 1):  # the main process looks, and both are told
        assert "has the record of another hold-out" in results.of("other", rank)["error"]
    for place in ("run", "again"):
        record = HoldOutRecord.read(tmp_path / place)
        assert record.same_rows(expected.record)
        assert logged(tmp_path / place) == set(expected.train["uid"])
