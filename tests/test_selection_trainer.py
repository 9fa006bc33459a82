"""`DPOConfig(data_filter=...)`: the trainer trains on what the selector keeps, and on nothing else."""

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import trl
from datasets import Dataset

import hf_gradkit
from helpers import parameter_gap
from hf_gradkit.cli import main
from hf_gradkit.selection import FiFA
from pair_helpers import OURS, THEIRS, dpo, pairs, train_dpo
from pairs import write_pairs

N = 32


@pytest.fixture(scope="module")
def dataset():
    return pairs(N, "reward_margin", "uid")


def test_training_is_that_of_the_selected_pairs(dataset, policy, tmp_path):
    """The oracle: TRL's own trainer on the rows that the library selects."""
    options = {"fraction": 0.5, "method": "greedy", "cache_folder": str(tmp_path / "cache")}
    ours = train_dpo(*OURS, policy, tmp_path / "ours", dataset, data_filter="fifa", data_filter_kwargs=options)
    selected = FiFA(**options).select(dataset)
    theirs = train_dpo(*THEIRS, policy, tmp_path / "theirs", selected.dataset)
    assert len(ours.train_dataset) == N // 2
    assert parameter_gap(ours, theirs) == 0
    folder = tmp_path / "ours" / "_data_filter"
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "scores.parquet", "selection.json"]
    figures = json.loads((folder / "selection.json").read_text())
    assert (figures["kept"], figures["rows"]) == (N // 2, N)
    assert Dataset.from_parquet(str(folder / "scores.parquet"), cache_dir=tmp_path)["kept"] == selected.scores["kept"]


def test_filter_and_columns_of_examples(dataset, policy, tmp_path):
    """What else reads the rows sees those kept, with their own columns; the evaluation data is left as it is."""
    trainer = dpo(
        *OURS, policy, tmp_path / "out", dataset,
        {"eval_dataset": dataset},
        data_filter="fifa",
        data_filter_kwargs={"count": 8, "embedder": None, "cache_folder": str(tmp_path / "cache")},
        weighting="madpo", weighting_kwargs={"calibrate": False}, example_log=True, example_id_column="uid",
        max_steps=1,
    )  # fmt: skip
    trainer.train()
    best = np.argsort(-np.array(dataset["reward_margin"]))[:8]
    assert sorted(trainer.train_dataset["uid"]) == sorted(dataset[int(i)]["uid"] for i in best)
    assert len(trainer.eval_dataset) == N


def test_a_function_in_the_configuration(dataset, policy, tmp_path):
    """Trackers write the configuration as JSON and checkpoints pickle it: neither can do so with a function."""
    function = lambda rows: [-row["reward_margin"] for row in rows]  # noqa: E731
    options = {"fraction": 0.5, "margin": function, "embedder": None, "cache_folder": str(tmp_path / "cache")}
    trainer = train_dpo(
        *OURS, policy, tmp_path / "out", dataset,
        data_filter="fifa", data_filter_kwargs=options, report_to="tensorboard", save_strategy="steps", save_steps=1,
    )  # fmt: skip
    lowest = np.argsort(dataset["reward_margin"])[: N // 2]
    assert sorted(trainer.train_dataset["uid"]) == sorted(dataset[int(i)]["uid"] for i in lowest)
    name = f"{__name__}:test_a_function_in_the_configuration.<locals>.<lambda>"
    assert json.loads(trainer.args.to_json_string())["data_filter_kwargs"]["margin"] == name
    saved = torch.load(tmp_path / "out" / "checkpoint-1" / "training_args.bin", weights_only=False)
    assert saved.data_filter_kwargs["margin"] == name
    again = copy.deepcopy(trainer.args)
    assert again.data_filter_kwargs["margin"].function is function
    assert dataclasses.replace(again, output_dir="other").data_filter_kwargs["margin"].function is function


def test_numbers_of_numpy_in_the_configuration(dataset, policy, tmp_path):
    options = {"fraction": np.float32(0.25), "margin": {"by": "columns"}, "margin_weight": np.float32(2)}
    options |= {"embedder": {"by": "tfidf", "dimension": np.int64(8)}, "k": np.int64(2)}
    options["cache_folder"] = str(tmp_path / "cache")
    trainer = dpo(*OURS, policy, tmp_path / "out", dataset, data_filter="fifa", data_filter_kwargs=options)
    assert len(trainer.train_dataset) == N // 4
    assert json.loads(trainer.args.to_json_string())["data_filter_kwargs"]["embedder"]["dimension"] == 8
    assert json.loads((tmp_path / "out" / "_data_filter" / "selection.json").read_text())["options"]["k"] == 2


def test_off_by_default(dataset, policy, tmp_path):
    trainer = dpo(*OURS, policy, tmp_path / "out", dataset)
    assert len(trainer.train_dataset) == N
    assert not (tmp_path / "out" / "_data_filter").exists()
    assert hf_gradkit.DPOConfig("out", use_cpu=True, bf16=False).data_filter == "none"
    plain = trl.DPOConfig(str(tmp_path / "plain"), use_cpu=True, bf16=False, report_to="none")
    assert len(hf_gradkit.DPOTrainer(policy, args=plain, train_dataset=dataset).train_dataset) == N


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data_filter": "fiffa"}, "There is no selector 'fiffa'. Did you mean 'fifa'?"),
        ({"data_filter": "fifa"}, "Set `fraction` or `count`"),
        ({"data_filter": "fifa", "data_filter_kwargs": {"fraction": 2}}, "`fraction` must be above 0"),
        ({"data_filter": "fifa", "data_filter_kwargs": {"fractoin": 0.1}}, "Did you mean 'fraction'?"),
        ({"data_filter": "fifa", "data_filter_kwargs": "{"}, "`data_filter_kwargs` must be a JSON object"),
        ({"data_filter": "ifd", "data_filter_kwargs": {"count": 3}}, "The selector 'ifd' needs a `model`, but it is"),
        ({"data_filter": "grad_cos", "data_filter_kwargs": {"count": 3}}, "The selector 'grad_cos' needs a `model`"),
        ({"data_filter_kwargs": {"fraction": 0.1}}, "`data_filter` is 'none', so it has no effect"),
    ],
)
def test_mistakes_are_said_before_a_model_is_loaded(options, message):
    with pytest.raises(ValueError) as error:
        hf_gradkit.DPOConfig("out", use_cpu=True, bf16=False, **options)
    assert message in str(error.value)


def test_streams_are_refused(dataset, policy, tmp_path):
    with pytest.raises(ValueError, match=r"rows are selected from a whole `datasets\.Dataset`"):
        dpo(*OURS, policy, tmp_path / "out", dataset.to_iterable_dataset(), data_filter="random",
            data_filter_kwargs={"fraction": 0.5})  # fmt: skip


def test_from_the_command_line(dataset, policy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pairs(Path("pairs.jsonl"), dataset.to_list())
    kwargs = json.dumps({"fraction": 0.25, "embedder": None, "cache_folder": "cache"})
    arguments = ["dpo", "--model_name_or_path", policy, "--dataset_name", "pairs.jsonl", "--output_dir", "out"]
    arguments += ["--data_filter", "fifa", "--data_filter_kwargs", kwargs, "--max_steps", "2", "--bf16", "false"]
    arguments += ["--report_to", "none", "--save_strategy", "no"]
    assert main.main(arguments) == 0
    assert json.loads(Path("out/_data_filter/selection.json").read_text())["kept"] == 8
