"""Which checkpoints a run goes on from: whole ones, written by such a run as it is."""

import json
import shutil

import pytest
import trl
from transformers import TrainerCallback

import hf_gradkit
from helpers import make_trainer, parameter_gap, text_dataset, train
from hf_gradkit.reporting import read_example_log
from hf_gradkit.reporting.example_log import ExampleLog
from hf_gradkit.trainers.checkpointing import CheckpointMixin
from hf_gradkit.trainers.checkpoints import (
    FILES,
    STATE,
    CheckpointError,
    check_same_world,
    find_checkpoint,
    find_last_checkpoint,
    read_facts,
)

SFT = (hf_gradkit.SFTTrainer, hf_gradkit.SFTConfig)
OPTIONS = {
    "max_steps": 6,
    "per_device_train_batch_size": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "optim": "adamw_torch",
    "learning_rate": 1e-3,
    "weighting": "linupper",
    "example_log": True,
}


OF_TRL = {key: value for key, value in OPTIONS.items() if key not in ("weighting", "example_log")}


class Fails(TrainerCallback):
    """Raises in the middle of a step."""

    def __init__(self, step):
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            raise RuntimeError(f"in step {self.step}")


@pytest.fixture(scope="module")
def whole(tokenizer, tmp_path_factory):
    """A run of six steps with checkpoints at 2, 4 and 6."""
    return train(*SFT, tokenizer, tmp_path_factory.mktemp("whole") / "run", text_dataset(26), **OPTIONS)


@pytest.fixture
def copied(whole, tmp_path):
    """A copy of its folder."""
    return shutil.copytree(whole.args.output_dir, tmp_path / "run")


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


HARM = {
    "the optimizer's state is cut short": (lambda folder: cut(folder / "optimizer.pt"), "its file optimizer.pt has"),
    "our state is gone": (
        lambda folder: (folder / "example_weighting.pt").unlink(),
        "its file example_weighting.pt is missing",
    ),
    "the model is gone": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
    "the last file was never written": (lambda folder: (folder / STATE).unlink(), f"there is no {STATE}"),
    "the last file is cut short": (lambda folder: cut(folder / STATE), f"its {STATE} is cut short"),
    "the list of files is cut short": (lambda folder: cut(folder / FILES), f"its {FILES} is cut short"),
    "the list of files is empty": (lambda folder: (folder / FILES).write_text(""), f"its {FILES} is cut short"),
    "the list of files lists nothing": (lambda folder: (folder / FILES).write_text("{}"), f"its {FILES} is cut short"),
    "the list of files is gone": (lambda folder: (folder / FILES).unlink(), f"its {FILES} is missing"),
    "nothing but the folder": (
        lambda folder: [path.unlink() for path in folder.iterdir()],
        "writing it did not come to its end",
    ),
}


@pytest.mark.parametrize("harm", HARM)
def test_a_checkpoint_that_is_not_whole_is_passed_over(harm, whole, copied, tokenizer, caplog):
    """The run goes on from the one before, says so, and ends where it would have."""
    harmed, words = HARM[harm]
    harmed(copied / "checkpoint-6")
    again = train(*SFT, tokenizer, copied, text_dataset(26), resume=True, **OPTIONS)
    assert f"{copied / 'checkpoint-6'} is not whole: " in caplog.text
    assert words in caplog.text
    assert f"The run goes on from {copied / 'checkpoint-4'}" in caplog.text
    assert "written anew" in caplog.text
    assert parameter_gap(whole, again) == 0
    logs = [read_example_log(str(folder)).to_pylist() for folder in (whole.args.output_dir, copied)]
    assert logs[0] == logs[1]
    assert find_last_checkpoint(copied) == str(copied / "checkpoint-6")


@pytest.mark.parametrize("harm", HARM)
def test_a_checkpoint_that_is_named_must_be_whole(harm, copied, tokenizer):
    harmed, words = HARM[harm]
    harmed(copied / "checkpoint-6")
    with pytest.raises(
        ValueError, match=r"checkpoint-6 is not whole: .*The latest whole one is .*checkpoint-4"
    ) as error:
        train(*SFT, tokenizer, copied, text_dataset(26), resume=str(copied / "checkpoint-6"), **OPTIONS)
    assert words in str(error.value)


def test_no_checkpoint_is_whole(copied, tokenizer):
    for folder in copied.glob("checkpoint-*"):
        cut(folder / "optimizer.pt")
    with pytest.raises(ValueError, match="holds no checkpoint to go on from"):
        train(*SFT, tokenizer, copied, text_dataset(26), resume=True, **OPTIONS)
    with pytest.raises(ValueError, match=r"is not whole: .*No other one is there"):
        train(*SFT, tokenizer, copied, text_dataset(26), resume=str(copied / "checkpoint-2"), **OPTIONS)


@pytest.fixture
def of_another(tokenizer, tmp_path):
    """A run of TRL's own trainer, which lists no files, and where it is."""
    folder = tmp_path / "of_another"
    return train(trl.SFTTrainer, trl.SFTConfig, tokenizer, folder, text_dataset(26), **OF_TRL), folder


def test_a_checkpoint_of_another_trainer_is_taken(of_another, tokenizer):
    """One without a list of its files."""
    whole, folder = of_another
    shutil.rmtree(folder / "checkpoint-6")
    assert not (folder / "checkpoint-4" / FILES).exists()
    again = train(*SFT, tokenizer, folder, text_dataset(26), resume=True, **OPTIONS | {"weighting": "none"})
    assert again.state.global_step == 6
    assert read_facts(folder / "checkpoint-4") is None
    assert parameter_gap(whole, again) == 0


@pytest.mark.parametrize("older", [True, False])
def test_the_checkpoint_that_could_not_be_read_is_not_named_as_the_one_to_use(older, of_another, tokenizer, capsys):
    """Of one without a list nobody can tell beforehand that a file is cut short."""
    _, folder = of_another
    cut(folder / "checkpoint-6" / "optimizer.pt")
    if not older:
        for step in (2, 4):
            shutil.rmtree(folder / f"checkpoint-{step}")
    with pytest.raises(RuntimeError):
        train(*SFT, tokenizer, folder, text_dataset(26), resume=True, **OPTIONS)
    said = capsys.readouterr().err
    assert f"RuntimeError before it trained a step. If {folder / 'checkpoint-6'} could not be read, leave it." in said
    assert "last whole checkpoint" not in said
    before = folder / "checkpoint-4"
    assert (f"resume_from_checkpoint={before} goes on from it" in said) == older
    if older:
        again = train(*SFT, tokenizer, folder, text_dataset(26), resume=str(before), **OPTIONS)
        assert again.state.global_step == 6
    else:
        assert "There is no whole one before it" in said


def test_the_checkpoint_of_the_last_step_leaves_nothing_to_train(whole, copied, tokenizer, caplog):
    """As after a kill between the last checkpoint and the end; transformers would train a step more."""
    again = train(*SFT, tokenizer, copied, text_dataset(26), resume=True, **OPTIONS)
    assert (again.state.global_step, again.state.max_steps) == (6, 6)
    assert f"{copied / 'checkpoint-6'} is of the last step, 6 of 6: nothing was left to train" in caplog.text
    assert parameter_gap(whole, again) == 0
    logs = [read_example_log(str(folder)).to_pylist() for folder in (whole.args.output_dir, copied)]
    assert logs[0] == logs[1]
    assert not (copied / "checkpoint-7").exists()
    theirs = train(trl.SFTTrainer, trl.SFTConfig, tokenizer, copied, text_dataset(26), resume=True, **OF_TRL)
    assert theirs.state.global_step == 7  # if that ever is 6, `_run_epoch` has nothing to mend any more


def test_checkpoints_of_an_earlier_run_are_not_those_of_the_last(copied, tokenizer, caplog, capsys):
    """A run that begins anew in the folder, and fails in its third step: its own are named, and gone on with."""
    other = {**OPTIONS, "learning_rate": 2e-3}
    trainer = make_trainer(*SFT, tokenizer, copied, text_dataset(26), **other)
    trainer.add_callback(Fails(3))
    with pytest.raises(RuntimeError, match="in step 3"):
        trainer.train()
    assert f"{copied} holds checkpoints of an earlier run, up to checkpoint-6. This run begins anew" in caplog.text
    said = capsys.readouterr().err
    assert f"The last whole checkpoint is {copied / 'checkpoint-2'}" in said
    assert f"{copied / 'checkpoint-6'} is of an earlier run than the last one here: name it" in said
    assert find_last_checkpoint(copied) == str(copied / "checkpoint-2")
    again = train(*SFT, tokenizer, copied, text_dataset(26), resume=True, **other)
    assert again.state.log_history[0]["learning_rate"] == pytest.approx(2e-3)
    assert find_last_checkpoint(copied) == str(copied / "checkpoint-6")


def test_an_earlier_run_that_is_gone_on_with_is_the_last_one_then(copied, tokenizer):
    """By name, from step 6, while a later run has a checkpoint at step 2; what it went on from is gone in the end."""
    facts = read_facts(copied / "checkpoint-2")
    (copied / "checkpoint-2" / FILES).write_text(json.dumps({**facts, "run_started": facts["run_started"] + 1}))
    options = {**OPTIONS, "max_steps": 8, "save_total_limit": 1}
    train(*SFT, tokenizer, copied, text_dataset(26), resume=str(copied / "checkpoint-6"), **options)
    assert [path.name for path in copied.glob("checkpoint-*")] == ["checkpoint-8"]
    assert read_facts(copied / "checkpoint-8")["run_started"] > facts["run_started"] + 1
    assert find_last_checkpoint(copied) == str(copied / "checkpoint-8")


@pytest.mark.parametrize("name", ["run information", "checkpoints"])
def test_which_run_was_the_last_is_known_by(name, copied):
    """The run's own file, or without one what its checkpoints say."""
    if name == "checkpoints":
        (copied / "gradkit_run.json").unlink()
        facts = read_facts(copied / "checkpoint-2")
        (copied / "checkpoint-2" / FILES).write_text(json.dumps({**facts, "run_started": facts["run_started"] + 60}))
        assert find_last_checkpoint(copied) == str(copied / "checkpoint-2")
        return
    info = json.loads((copied / "gradkit_run.json").read_text())
    (copied / "gradkit_run.json").write_text(json.dumps({**info, "run_started": info["run_started"] + 60}))
    assert find_last_checkpoint(copied) is None  # begun, and ended before its first checkpoint


def test_a_checkpoint_of_the_model_alone_is_not_gone_on_from(tokenizer, tmp_path):
    options = {**OPTIONS, "max_steps": 2, "save_only_model": True}
    train(*SFT, tokenizer, tmp_path, text_dataset(26), **options)
    with pytest.raises(ValueError, match=r"checkpoint-2 is not whole: it has the model alone \(save_only_model\)"):
        train(*SFT, tokenizer, tmp_path, text_dataset(26), resume=str(tmp_path / "checkpoint-2"), **options)
    with pytest.raises(ValueError, match="holds no checkpoint to go on from"):
        train(*SFT, tokenizer, tmp_path, text_dataset(26), resume=True, **options)


def test_auto_goes_on_where_it_can(copied, tokenizer, tmp_path):
    shutil.rmtree(copied / "checkpoint-6")
    for folder, first in ((copied, 5), (tmp_path / "empty", 1)):
        trainer = train(*SFT, tokenizer, folder, text_dataset(26), resume="auto", logging_steps=1, **OPTIONS)
        trained = [entry["step"] for entry in trainer.state.log_history if "loss" in entry]
        assert (trained[0], trained[-1]) == (1, 6)
        assert trainer._initial_global_step == first - 1
    assert find_checkpoint("auto", str(copied)) == str(copied / "checkpoint-6")
    assert find_checkpoint("auto", str(tmp_path / "nowhere")) is None


def test_what_a_run_leaves_of_an_earlier_one(copied, tokenizer):
    """A checkpoint is written into an empty folder: a file of an earlier run must not pass for its own."""
    (copied / "checkpoint-2" / "stale.pt").write_text("of an earlier run")
    train(*SFT, tokenizer, copied, text_dataset(26), **{**OPTIONS, "max_steps": 2})
    assert not (copied / "checkpoint-2" / "stale.pt").exists()
    facts = read_facts(copied / "checkpoint-2")
    assert facts["files"].keys() >= {"model.safetensors", "optimizer.pt", "rng_state.pth", "example_weighting.pt"}
    assert (facts["processes"], facts["rows"], facts["examples_per_step"]) == (1, 26, 2)


def test_only_so_many_checkpoints_are_kept(tokenizer, tmp_path):
    trainer = train(*SFT, tokenizer, tmp_path, text_dataset(26), **OPTIONS, save_total_limit=1)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-6"]
    assert find_last_checkpoint(trainer.args.output_dir) == str(tmp_path / "checkpoint-6")


# ---- another run than the one that wrote it ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "changes", "part"),
    [
        (20, {}, "The training data has 20 rows, and had 26 when .*checkpoint-6 was written"),
        (26, {"gradient_accumulation_steps": 2}, "An optimizer step has 4 examples, and had 2 when"),
    ],
)
def test_data_or_batch_of_another_size(rows, changes, part, copied, tokenizer):
    with pytest.raises(ValueError, match=part):
        train(*SFT, tokenizer, copied, text_dataset(rows), resume=True, **{**OPTIONS, **changes})
    anew = {**OPTIONS, **changes, "ignore_data_skip": True, "max_steps": 7}
    trainer = train(*SFT, tokenizer, copied, text_dataset(rows), resume=True, **anew)
    assert trainer.state.global_step == 7


def test_the_same_step_may_be_split_otherwise(whole, copied, tokenizer):
    shutil.rmtree(copied / "checkpoint-6")
    options = {**OPTIONS, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    train(*SFT, tokenizer, copied, text_dataset(26), resume=True, **options)
    logs = [read_example_log(str(folder)) for folder in (whole.args.output_dir, copied)]
    assert sorted(logs[0]["example_id"].to_pylist()) == sorted(logs[1]["example_id"].to_pylist())


@pytest.mark.parametrize(
    ("facts", "part"),
    [
        (
            {"distributed_type": "FSDP", "processes": 2},
            "2 processes under FSDP2, and 1 process cannot read its files: .*FSDP2 only",
        ),
        (
            {"distributed_type": "DEEPSPEED", "zero_stage": 3, "processes": 4},
            "4 processes under DeepSpeed ZeRO-3, .* cannot read its o",
        ),
    ],
)
def test_sharded_states_are_for_their_backend(facts, part, copied, tokenizer):
    file = copied / "checkpoint-6" / FILES
    file.write_text(json.dumps(json.loads(file.read_text()) | facts))
    trainer = make_trainer(*SFT, tokenizer, copied, text_dataset(26), **OPTIONS)
    with pytest.raises(ValueError, match=part) as error:
        trainer.train(resume_from_checkpoint=True)
    assert f"model_name_or_path={copied / 'checkpoint-6'}" in str(error.value)


def test_another_number_of_fsdp2_processes_is_said_to_be_untested(copied, tokenizer, monkeypatch):
    file = copied / "checkpoint-6" / FILES
    facts = json.loads(file.read_text()) | {"distributed_type": "FSDP", "processes": 2}
    file.write_text(json.dumps(facts))
    monkeypatch.setattr(f"{check_same_world.__module__}.world_facts", lambda trainer: {**facts, "processes": 4})
    with pytest.raises(ValueError, match="and 4 processes under FSDP2 have not been tested to read its optimizer"):
        check_same_world(str(file.parent), None)


def test_two_ddp_processes_and_one_read_each_others(copied, tokenizer):
    file = copied / "checkpoint-6" / FILES
    file.write_text(json.dumps(json.loads(file.read_text()) | {"distributed_type": "MULTI_CPU", "processes": 2}))
    check_same_world(str(file.parent), make_trainer(*SFT, tokenizer, copied, text_dataset(26), **OPTIONS))


def test_parts_of_processes_that_are_gone_belong_to_the_first(tmp_path):
    """A run on one process goes on from a checkpoint of two: what the second one logged after it goes."""
    for rank in (0, 1):
        log = ExampleLog(tmp_path, rank, ranks=2)
        for step in range(3):  # parts 0, 1, 2
            log.add({"example_id": [10 * step + rank], "epoch": [0], "step": [step], "loss": [1.0]})
            log.flush()
    alone = ExampleLog(tmp_path, 0, ranks=1)
    alone.start(2)
    assert sorted(read_example_log(str(tmp_path))["example_id"].to_pylist()) == [0, 1, 10, 11]
    ExampleLog(tmp_path, 0, ranks=1).start(None)
    assert not list((tmp_path / "example_log").glob("*.parquet"))


def test_a_failure_to_write_names_what_is_left(tokenizer, tmp_path, monkeypatch, capsys):
    def fail(self, output_dir):
        if self.state.global_step == 4:
            raise OSError(28, "No space left on device")
        CheckpointMixin._save_rng_state(self, output_dir)

    monkeypatch.setattr(hf_gradkit.SFTTrainer, "_save_rng_state", fail)
    trainer = make_trainer(*SFT, tokenizer, tmp_path, text_dataset(26), **OPTIONS)
    with pytest.raises(CheckpointError, match=r"checkpoint-4 could not be written: OSError: .*No space left"):
        trainer.train()
    said = capsys.readouterr().err
    assert "The run ended with CheckpointError after step 4" in said
    assert f"The last whole checkpoint is {tmp_path / 'checkpoint-2'}" in said
