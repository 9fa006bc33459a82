"""Two real DDP processes: parity with TRL, one trajectory for every split of a step, figures over all ranks."""

from collections import Counter

import pytest
from transformers import DataCollatorForLanguageModeling

import hf_gradkit
from helpers import last_token_loss, make_rows, text_dataset, train
from hf_gradkit.reporting import read_example_log
from results import Results

pytestmark = pytest.mark.multiprocess

STRONG = {"temperature": 0.4, "warmup_ratio": 0.0}
COLUMNS = {"group_column": "source", "example_id_column": "uid", "example_log": True}
SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 5}


def case(name, trainer="sft", rows=26, streaming=False, resume=None, bad_row=None, own_loss=False, **options):
    return {
        "name": name,
        "trainer": trainer,
        "rows": rows,
        "streaming": streaming,
        "resume": resume,
        "bad_row": bad_row,
        "own_loss": own_loss,
        "options": {"max_steps": 4, "per_device_train_batch_size": 2, "ddp_find_unused_parameters": False, **options},
    }


# The same step of 8 examples, split over ranks and accumulation here, and in one process in the test. An epoch's last
# step is left out: two ranks fill it up with rows that one process does not repeat.
SPLITS = {
    "step": {"weighting": "linupper", "weighting_kwargs": {**STRONG, "scope": "step"}},
    "step sequence": {
        "weighting": "linupper",
        "weighting_kwargs": {**STRONG, "scope": "step", "normalization": "sequence"},
    },
    "weights": {"weight_column": "weight", "normalize_weight_column": True},
}
SPLIT = {"max_steps": 3, "lr_scheduler_type": "constant"}

CASES = [
    case("trl", "trl", gradient_accumulation_steps=2),
    case("off", gradient_accumulation_steps=2),
    case("trl alone", "trl", average_tokens_across_devices=False),
    case("ones alone", average_tokens_across_devices=False, group_column="source"),
    case("ones", gradient_accumulation_steps=2, group_column="source"),
    *(case(name, gradient_accumulation_steps=2, **SPLIT, **options) for name, options in SPLITS.items()),
    *(
        case(
            f"sequence {averaged}",
            average_tokens_across_devices=averaged,
            weight_column="weight",
            weighting_kwargs={"normalization": "sequence"},
        )
        for averaged in (True, False)
    ),
    case("own loss", "plain", own_loss=True, weight_column="weight", max_steps=3, gradient_accumulation_steps=2),
    case("micro_batch", weighting="linupper", weighting_kwargs={**STRONG, "scope": "micro_batch"}),
    case("epochs", rows=11, max_steps=-1, num_train_epochs=2, weighting="linupper", **COLUMNS),
    case("stream", rows=11, max_steps=6, streaming=True, weighting="linupper", **COLUMNS),
    case("plain stream", "plain", rows=11, max_steps=6, streaming=True, weighting="linupper", **COLUMNS),
    case(
        "packed",
        rows=40,
        per_device_train_batch_size=1,
        packing=True,
        max_length=48,
        max_steps=-1,
        num_train_epochs=1,
        weighting="linupper",
        weighting_kwargs={**STRONG, "scope": "micro_batch"},
        **COLUMNS,
    ),
    case("saved", weighting="linupper", weighting_kwargs=STRONG, **SAVING, **COLUMNS),
    # Stopped in the middle of an epoch whose last step holds padding.
    case("short", rows=11, weighting="linupper", **{**SAVING, "save_steps": 1, "max_steps": 3}, **COLUMNS),
    case("not finite", bad_row=5, weighting="linupper", max_steps=14),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Results:
    results = Results("train_cases.py", tmp_path_factory.mktemp("two"))
    results.run(CASES)
    for one in CASES:
        if one["name"] != "not finite":
            assert results.of(one["name"])["processes"] == 2
            assert results.of(one["name"])["distributed_type"] == "MULTI_CPU"
    return results


def alone(tokenizer, tmp_path, **options):
    """The same run in this process, with a micro-batch of 8."""
    trainer = train(
        hf_gradkit.SFTTrainer,
        hf_gradkit.SFTConfig,
        tokenizer,
        tmp_path,
        text_dataset(26, "weight", "source", "uid"),
        per_device_train_batch_size=8,
        **options,
    )
    logs = {
        key: [entry[key] for entry in trainer.state.log_history if key in entry and "loss" in entry]
        for key in ("loss", "loss/unweighted", "weights/ess", "weights/max", "weights/min")
    }
    return trainer.model.state_dict(), logs


@pytest.mark.parametrize(("theirs", "ours"), [("trl", "off"), ("trl", "ones"), ("trl alone", "ones alone")])
def test_with_ours_off_or_ones_two_processes_are_trl(theirs, ours, results):
    assert results.gap(ours, results.parameters(theirs)) == 0
    their_logs, our_logs = results.of(theirs)["logs"], results.of(ours)["logs"]
    if ours == "off":
        assert their_logs == our_logs
    for their_log, our_log in zip(their_logs, our_logs, strict=True):
        assert {key: our_log[key] for key in their_log} == their_log


@pytest.mark.parametrize("name", SPLITS)
def test_two_ranks_times_two_times_two_is_one_times_eight(name, results, tokenizer, tmp_path):
    """(2 ranks, batch 2, accumulation 2) = (1, 8, 1); (1, 1, 8) = (1, 8, 1) is tested on one process."""
    one, logs = alone(tokenizer, tmp_path, **SPLIT, **SPLITS[name])
    assert results.gap(name, one) < 1e-6
    for key in ("loss", "loss/unweighted", "weights/max", "weights/min"):
        assert results.logs(name, key) == pytest.approx(logs[key], rel=1e-4)
    if name != "weights":  # weights of the data are compared with nothing but their micro-batch
        assert results.logs(name, "weights/ess") == pytest.approx(logs["weights/ess"], rel=1e-4)
    assert max(results.logs(name, "weights/max")) > 1.05


def test_sequence_means_are_the_same_with_and_without_averaging_across_devices(results):
    """Ranks with equally many examples: their own mean, and DDP's over them, is the mean over all."""
    assert results.gap("sequence True", results.parameters("sequence False")) < 1e-6
    assert results.logs("sequence True", "loss") == pytest.approx(results.logs("sequence False", "loss"), rel=1e-5)


def test_a_loss_of_the_users_own_is_averaged_over_the_ranks(results, tokenizer, tmp_path):
    dataset = text_dataset(26, "weight").map(lambda row: tokenizer(row["text"]), remove_columns="text")
    trainer = train(
        hf_gradkit.Trainer,
        hf_gradkit.TrainingArguments,
        tokenizer,
        tmp_path,
        dataset,
        trainer_kwargs={
            "per_example_loss": last_token_loss,
            "data_collator": DataCollatorForLanguageModeling(tokenizer, mlm=False),
        },
        per_device_train_batch_size=8,
        max_steps=3,
        weight_column="weight",
    )
    assert results.gap("own loss", trainer.model.state_dict()) < 1e-6
    logs = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert results.logs("own loss", "loss") == pytest.approx(logs, rel=1e-4)


def test_micro_batch_compares_over_the_ranks(results, tokenizer, tmp_path):
    """Two ranks with two examples each give the weights of one process with four."""
    trainer = train(
        hf_gradkit.SFTTrainer,
        hf_gradkit.SFTConfig,
        tokenizer,
        tmp_path,
        text_dataset(26, "weight", "source", "uid"),
        per_device_train_batch_size=4,
        weighting="linupper",
        weighting_kwargs={**STRONG, "scope": "micro_batch"},
    )
    assert results.gap("micro_batch", trainer.model.state_dict()) < 1e-6


@pytest.mark.parametrize("name", ["epochs", "stream", "plain stream"])
def test_unequal_last_batches_are_counted_once(name, results):
    """11 rows on 2 x 2: the sampler fills the last batch up with rows that were there before."""
    log = read_example_log(str(results.folder / name)).to_pylist()
    counts = Counter((row["example_id"], row["epoch"]) for row in log)
    assert set(counts.values()) == {1}
    assert len(counts) == 22
    sources = {row["uid"]: row["source"] for row in make_rows(11)}
    assert all(row["group"] == sources[row["example_id"]] for row in log)


def test_group_figures_are_those_of_both_ranks(results):
    log = read_example_log(str(results.folder / "epochs")).to_pylist()
    for entry in results.of("epochs")["logs"]:
        of_step = [row for row in log if row["step"] == entry["step"] - 1]
        for group in {row["group"] for row in of_step} if "loss" in entry else ():
            losses = [row["loss"] for row in of_step if row["group"] == group]
            assert entry[f"group_loss/{group}"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_packed_ranks_hold_unequal_numbers_of_documents(results):
    log = read_example_log(str(results.folder / "packed"))
    assert sorted(log["example_id"].to_pylist()) == [f"id-{i:04d}" for i in range(40)]
    assert results.logs("packed", "weights/max")[0] > 1.05


def test_a_loss_that_is_not_finite_stops_both_ranks(results):
    for rank in (0, 1):
        assert "rows [5] of the training data" in results.of("not finite", rank)["error"]


def test_a_resumed_run_equals_the_uninterrupted_one(results):
    """Resumed from step 4 of 5; the example log ends up with every row once."""
    whole, log = results.parameters("saved"), read_example_log(str(results.folder / "saved")).to_pylist()
    short = read_example_log(str(results.folder / "short")).to_pylist()
    assert len(short) == 11
    cases = {one["name"]: one for one in CASES}
    results.run(
        [
            {**cases["saved"], "resume": str(results.folder / "saved" / "checkpoint-4")},
            {**cases["short"], "resume": str(results.folder / "short" / "checkpoint-1")},
        ]
    )
    assert read_example_log(str(results.folder / "short")).to_pylist() == short
    assert results.gap("saved", whole) == 0
    assert results.of("saved")["logs"][0]["step"] == 1
    assert read_example_log(str(results.folder / "saved")).to_pylist() == log
