"""`SFTConfig(sampler="personal_loss")`: which rows are trained on, by the library's sampler and TRL's trainer."""

import json
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
import trl
from datasets import Dataset

import hf_gradkit
from helpers import (
    StopError,
    crash_after,
    dataset_of,
    logs_without_timings,
    make_rows,
    parameter_gap,
    text_dataset,
    train,
)
from hf_gradkit.cli import main
from hf_gradkit.data.tiny import tiny_llama
from hf_gradkit.selection import PersonalLossSampler
from results import Results

ROWS, BATCH = 22, 4
STEPS = 6  # of an epoch; the last one has two rows
PLD = {
    "sampler": "personal_loss",
    "sampler_kwargs": {"pool": 4, "temperature": 0.05},
    "group_column": "source",
    "max_steps": -1,
    "num_train_epochs": 3,
}
CLASSES = (hf_gradkit.SFTTrainer, hf_gradkit.SFTConfig)


class Noting(hf_gradkit.SFTTrainer):
    """Notes the rows of each micro-batch, by their numbers, and their losses."""

    def __init__(self, *positional, **keywords):
        self.rows, self.losses = [], []
        super().__init__(*positional, **keywords)

    def _weigh(self, sums, tokens, info, num_items_in_batch):
        self.rows.append(info.index.tolist())
        self.losses.append((sums / tokens).tolist())
        return super()._weigh(sums, tokens, info, num_items_in_batch)


def epochs(trainer, steps: int = STEPS) -> list[list[int]]:
    """The rows of each epoch, in order."""
    starts = range(0, len(trainer.rows), steps)
    return [list(chain(*trainer.rows[start : start + steps])) for start in starts]


@pytest.fixture(scope="module")
def dataset():
    return text_dataset(ROWS, "source", "uid")


@pytest.fixture(scope="module")
def run(dataset, tokenizer, tmp_path_factory):
    return train(Noting, hf_gradkit.SFTConfig, tokenizer, tmp_path_factory.mktemp("pld"), dataset, **PLD)


def test_the_rows_are_those_of_the_sampler(run, dataset):
    """The oracle: the sampler in a loop, told the losses that the trainer had."""
    sampler = PersonalLossSampler(dataset["source"], pool=4, temperature=0.05, seed=42)
    trained = epochs(run)
    for epoch in range(3):
        assert list(sampler) == trained[epoch]
        of_epoch = slice(epoch * STEPS, (epoch + 1) * STEPS)
        for rows, losses in zip(run.rows[of_epoch], run.losses[of_epoch], strict=True):
            sampler.update(rows, losses)
    assert sorted(trained[0]) == list(range(ROWS))
    for epoch in trained[1:]:
        assert len(set(epoch)) < ROWS
        groups = [dataset[row]["source"] for row in epoch]
        assert sorted(groups) == sorted(dataset["source"])  # every group keeps its share


def test_training_is_trls_on_these_rows(run, dataset, tokenizer, tmp_path):
    rows = dataset.select(list(chain(*epochs(run)))).remove_columns(["source", "uid"])

    class Epochs(torch.utils.data.Sampler):
        """The first run's rows, epoch by epoch: its batches of two included."""

        def __init__(self):
            self.epoch = 0

        def __len__(self):
            return ROWS

        def __iter__(self):
            yield from range(self.epoch * ROWS, (self.epoch + 1) * ROWS)
            self.epoch += 1

    sampler = Epochs()

    class Ordered(trl.SFTTrainer):
        def _get_train_sampler(self, train_dataset=None):
            return sampler

    theirs = train(Ordered, trl.SFTConfig, tokenizer, tmp_path, rows, max_steps=3 * STEPS)
    assert parameter_gap(run, theirs) == 0


def test_losses_are_those_of_single_examples(dataset, tokenizer, tmp_path):
    """At learning rate 0, what the sampler knows is each example's cross-entropy, alone in a batch."""
    trainer = train(*CLASSES, tokenizer, tmp_path, dataset, learning_rate=0.0, **PLD)
    model = tiny_llama(tokenizer, hidden_size=32).eval()
    known = trainer._resampler.sampler.state_dict()["losses"]
    for row, text in enumerate(dataset["text"]):
        ids = torch.tensor([tokenizer(text)["input_ids"] + [tokenizer.eos_token_id]])
        with torch.no_grad():
            assert float(model(input_ids=ids, labels=ids).loss) == pytest.approx(float(known[row]), rel=1e-5)


def test_rows_that_preparation_drops_and_shuffles(tokenizer, tmp_path):
    """Losses go to the rows that they are of, although places in the prepared data are others."""
    rows = make_rows(ROWS)
    for row in rows[::5]:
        row["prompt"] = " ".join(["house"] * 60)  # nothing of the completion is left within max_length
    dataset = Dataset.from_list([{key: row[key] for key in ("prompt", "completion", "source")} for row in rows])
    trainer = train(
        Noting, hf_gradkit.SFTConfig, tokenizer, tmp_path, dataset, max_length=40, shuffle_dataset=True, **PLD
    )
    kept = len(trainer.train_dataset)
    assert kept == ROWS - 5
    numbers = trainer.train_dataset["example_index"]
    assert numbers != sorted(numbers)
    last = {}
    for batch, losses in zip(trainer.rows, trainer.losses, strict=True):
        last.update(zip(batch, losses, strict=True))
    known = trainer._resampler.sampler.state_dict()["losses"].tolist()
    assert known == pytest.approx([last[number] for number in numbers])


@pytest.mark.parametrize("crash", [8, 13])  # in the second epoch, and in the third
def test_a_resumed_run_equals_the_uninterrupted_one(crash, dataset, tokenizer, tmp_path):
    options = {**PLD, "save_strategy": "steps", "save_steps": 3 if crash == 8 else 4}  # at an epoch's end, and within
    whole = train(Noting, hf_gradkit.SFTConfig, tokenizer, tmp_path / "whole", dataset, **options)
    keywords = {"callbacks": [crash_after(crash)]}
    with pytest.raises(StopError):
        train(Noting, hf_gradkit.SFTConfig, tokenizer, tmp_path / "cut", dataset, keywords, **options)
    cut = train(Noting, hf_gradkit.SFTConfig, tokenizer, tmp_path / "cut", dataset, resume=True, **options)
    assert cut.rows == whole.rows[-len(cut.rows) :]
    assert len(cut.rows) == 3 * STEPS - (6 if crash == 8 else 12)
    assert parameter_gap(whole, cut) == 0


def test_a_checkpoint_without_losses_is_said(dataset, tokenizer, tmp_path, caplog):
    saving = {"save_strategy": "steps", "save_steps": 3}
    train(*CLASSES, tokenizer, tmp_path, dataset, group_column="source", max_steps=3, **saving)
    checkpoint = str(tmp_path / "checkpoint-3")
    train(*CLASSES, tokenizer, tmp_path, dataset, resume=checkpoint, **PLD)
    assert "The checkpoint holds no losses for these examples" in caplog.text


def test_the_same_trainer_can_train_twice(run, dataset, tokenizer, tmp_path):
    trainer = train(Noting, hf_gradkit.SFTConfig, tokenizer, tmp_path, dataset, learning_rate=0.0, **PLD)
    first, trainer.rows = trainer.rows, []
    trainer.train()
    assert trainer.rows == first


def test_without_groups_and_with_weights(dataset, tokenizer, tmp_path):
    """All rows are one group; the losses told are those before weighting."""
    options = {**PLD, "group_column": None, "weighting": "linupper", "weighting_kwargs": {"warmup_ratio": 0.0}}
    trainer = train(
        Noting, hf_gradkit.SFTConfig, tokenizer, tmp_path, dataset, padding_free=True, max_length=None, **options
    )
    last = {}
    for rows, losses in zip(trainer.rows, trainer.losses, strict=True):
        last.update(zip(rows, losses, strict=True))
    known = trainer._resampler.sampler.state_dict()["losses"].numpy()
    assert known == pytest.approx(np.array([last[row] for row in range(ROWS)]))
    assert len(set(epochs(trainer)[1])) < ROWS


def test_off_by_default(dataset, tokenizer, tmp_path):
    """With a group column alone, the rows are TRL's."""
    ours = train(*CLASSES, tokenizer, tmp_path / "ours", dataset, group_column="source")
    theirs = train(trl.SFTTrainer, trl.SFTConfig, tokenizer, tmp_path / "theirs", dataset)
    assert parameter_gap(ours, theirs) == 0
    assert ours._resampler is None
    assert hf_gradkit.SFTConfig("out", use_cpu=True, bf16=False).sampler == "none"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "personal_los"}, "`sampler` is 'personal_los'. Did you mean 'personal_loss'?"),
        ({"sampler_kwargs": {"pool": 3}}, "`sampler_kwargs` sets 'pool', but `sampler` is 'none'"),
        ({**PLD, "sampler_kwargs": {"pol": 3}}, "has no option 'pol'. Did you mean 'po"),
        ({"sampler": "personal_loss", "sampler_kwargs": {"pool": 0}}, "`pool` must be an integer of at least 1"),
        ({"sampler": "personal_loss", "sampler_kwargs": {"temperature": "hot"}}, "`temperature` must be above 0"),
        ({"sampler": "personal_loss", "sampler_kwargs": "[1]"}, "`sampler_kwargs` must be a JSON object"),
        ({"sampler": "personal_loss", "packing": True}, "`packing` is True together with `sampler`"),
        (
            {"sampler": "personal_loss", "train_sampling_strategy": "group_by_length"},
            "`train_sampling_strategy` is 'group_by_length' and `sampler` 'personal_loss'",
        ),
    ],
)
def test_mistakes_are_said_before_a_model_is_loaded(options, message):
    with pytest.raises(ValueError) as error:
        hf_gradkit.SFTConfig("out", use_cpu=True, bf16=False, **options)
    assert message in str(error.value)


def test_streams_are_refused(dataset, tokenizer, tmp_path):
    stream = dataset.to_iterable_dataset()
    with pytest.raises(ValueError, match=r"is a IterableDataset, and `sampler` 'personal_loss' draws from all rows"):
        train(*CLASSES, tokenizer, tmp_path, stream, **{**PLD, "max_steps": 4})


def test_a_run_that_never_resamples_is_refused(dataset, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"after 1 plain epoch\(s\) of 6 steps, and the run ends after 6 steps"):
        train(*CLASSES, tokenizer, tmp_path, dataset, **{**PLD, "num_train_epochs": 1})
    never = {**PLD, "num_train_epochs": 1, "sampler_kwargs": {"plain_epochs": 0}}
    with pytest.raises(ValueError, match="in the first epoch no loss is known, so there is nothing to resample by"):
        train(*CLASSES, tokenizer, tmp_path, dataset, **never)


def test_a_group_column_that_is_not_there(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="`group_column` is 'source', but the training data has no such column"):
        train(*CLASSES, tokenizer, tmp_path, text_dataset(ROWS), **PLD)


def test_from_a_yaml(tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_llama(tokenizer, hidden_size=32).save_pretrained("model")
    tokenizer.save_pretrained("model")
    dataset_of(12, "text", "source").to_json("data.jsonl")
    Path("sft.yaml").write_text(
        "model_name_or_path: model\ndataset_name: data.jsonl\noutput_dir: out\nsampler: personal_loss\n"
        "sampler_kwargs:\n  plain_epochs: 0\n  temperature: 0.2\ngroup_column: source\nexample_log: true\n"
        "num_train_epochs: 2\nbf16: false\nuse_cpu: true\nreport_to: none\nsave_strategy: 'no'\n"
    )
    assert main.main(["sft", "--config", "sft.yaml"]) == 0
    assert json.loads(Path("out/trainer_state.json").read_text())["global_step"] == 4


CASE = {
    "name": "pld", "trainer": "sft", "rows": 24,
    "options": {**PLD, "per_device_train_batch_size": 2, "ddp_find_unused_parameters": False, "example_log": True,
                "save_strategy": "steps", "save_steps": 5},
}  # fmt: skip


@pytest.mark.multiprocess
def test_two_processes_draw_and_train_as_one(tokenizer, tmp_path):
    results = Results("train_cases.py", tmp_path)
    results.run([CASE])
    assert results.of("pld")["processes"] == 2
    options = {**CASE["options"], "per_device_train_batch_size": 4}
    dataset = text_dataset(24, "weight", "source", "uid")
    alone = train(Noting, hf_gradkit.SFTConfig, tokenizer, tmp_path / "alone", dataset, **options)
    assert len(set(epochs(alone)[2])) < 24
    assert results.gap("pld", alone.model.state_dict()) < 1e-6
    # From the middle of a resampled epoch: two processes go on as two, and one goes on where two were.
    resumed = {**CASE, "name": "resumed", "resume": str(tmp_path / "pld" / "checkpoint-10")}
    results.run([resumed])
    assert results.gap("resumed", results.parameters("pld")) == 0
    after = train(
        Noting, hf_gradkit.SFTConfig, tokenizer, tmp_path / "after", dataset, resume=resumed["resume"], **options
    )
    assert after.rows == alone.rows[10:]
    assert logs_without_timings(after)[-2]["loss"] == pytest.approx(logs_without_timings(alone)[-2]["loss"], rel=1e-4)
