"""`gradkit select`: from a file to a smaller one in the same format, with scores, page and card."""

import gzip
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import Dataset, load_dataset

from hf_gradkit.cli import main, select
from hf_gradkit.reporting.selection import render
from hf_gradkit.selection import Assessment, FiFA, Length, Random, Selector
from hub_uploads import environment, hub_that_takes
from launch import run
from pairs import make_pairs, write_pairs

PARTS = {"margin": {"by": "columns", "chosen": "m"}}


def quality(rows):
    """A quality of the user's own."""
    return [float(len(row["prompt"])) for row in rows]


@pytest.fixture
def rows():
    return [
        {"prompt": row["prompt"], "win": row["chosen"], "rejected": row["rejected"], "m": (i * 7 % 11) / 2 - 1}
        for i, row in enumerate(make_pairs(40, "prompt"))
    ]


@pytest.fixture
def config(tmp_path, monkeypatch, rows):
    """Write a YAML with these changes to a working one, and return its arguments."""
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path / "pairs.jsonl", rows)

    def write(**changes):
        values = {"dataset_name": "pairs.jsonl", "column_mapping": {"win": "chosen"}, "by": "fifa", "fraction": 0.25}
        values |= {"selector_kwargs": PARTS, "output_dir": "out", **changes}
        Path("select.yaml").write_text(yaml.safe_dump({k: v for k, v in values.items() if v != "left out"}))
        return ["--config", "select.yaml"]

    return write


def library(rows, tmp_path, **options):
    dataset = Dataset.from_list(rows).rename_column("win", "chosen")
    return FiFA(**{"fraction": 0.25, "cache_folder": tmp_path / "cache", **PARTS, **options}).select(dataset)


def test_values_stay_as_they_are(rows, tmp_path, monkeypatch):
    """Numbers to the last digit, lists of them, dates, and letters beyond ASCII."""
    monkeypatch.chdir(tmp_path)
    exact = {"m": 38.123456789012344, "tiny": 5.85e-11, "big": 1.2345678901234567e19, "vector": [0.1 + 0.2, 1e-17]}
    exact |= {"created": "2024-01-10 10:00:00", "name": "Zoë ✓", "number": 2**53 + 1}
    write_pairs(tmp_path / "pairs.jsonl", [row | exact for row in rows])
    options = ["--column_mapping", '{"win": "chosen"}', "--by", "random", "--count", "5", "--output_dir", "out"]
    assert select.main(["--dataset_name", "pairs.jsonl", *options]) == 0
    lines = (tmp_path / "out" / "selected.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 5
    assert all({key: json.loads(line)[key] for key in exact} == exact for line in lines)
    before, after = (
        Dataset.from_json(name, cache_dir=str(tmp_path)) for name in ("pairs.jsonl", "out/selected.jsonl")
    )
    assert after.features == before.features


def test_everything_that_select_leaves(config, rows, tmp_path, capsys):
    assert main.main(["select", *config()]) == 0
    said = capsys.readouterr().out
    expected = library(rows, tmp_path)
    lines = [json.loads(line) for line in Path("out/selected.jsonl").read_text().splitlines()]
    assert lines == [rows[i] for i in expected.kept]  # the source's own columns and names
    scores = pq.read_table("out/scores.parquet").to_pydict()
    assert scores == expected.scores.to_dict()
    figures = json.loads(Path("out/selection.json").read_text())
    assert figures["figures"] == expected.report["figures"]
    assert figures["options"]["margin"] == PARTS["margin"]
    assert "10 of 40 rows kept by fifa." in said
    assert "gradkit dpo --dataset_name out/selected.jsonl" in said
    assert """--column_mapping '{"win": "chosen"}'""" in said
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "README.md", "report.html", "scores.parquet", "scoring", "selected.jsonl", "selection.json"
    ]  # fmt: skip


def test_the_card_makes_the_folder_a_data_set(config):
    assert select.main(config()) == 0
    card = Path("out/README.md").read_text()
    assert "# 10 of 40 rows of pairs.jsonl, selected by fifa" in card
    assert "\npython -m hf_gradkit.cli.select --config select.yaml\n" in card
    assert "| margin |" in card
    loaded = load_dataset("out", cache_dir="cache")
    assert list(loaded) == ["train"]
    assert loaded["train"].column_names == ["prompt", "win", "rejected", "m"]
    assert len(loaded["train"]) == 10


@pytest.mark.parametrize("name", ["pairs.parquet", "pairs.csv", "pairs.jsonl.gz"])
def test_the_same_kind_of_file(name, config, rows, tmp_path):
    dataset = Dataset.from_list(rows)
    if name.endswith("gz"):
        with gzip.open(name, "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    else:
        getattr(dataset, f"to_{name.partition('.')[2]}")(name)
    assert select.main(config(dataset_name=name)) == 0
    kept = library(rows, tmp_path).kept
    written = load_dataset("out", split="train", cache_dir="cache")
    assert written.to_list() == [rows[i] for i in kept]
    assert Path(f"out/selected.{name.partition('.')[2]}").exists()


def test_conversations_come_out_as_they_went_in(config, rows, tmp_path):
    talks = [talk | {"m": row["m"]} for talk, row in zip(make_pairs(40, "messages"), rows, strict=True)]
    write_pairs(tmp_path / "talks.jsonl", talks)
    assert select.main(config(dataset_name="talks.jsonl", column_mapping="left out")) == 0
    lines = [json.loads(line) for line in Path("out/selected.jsonl").read_text().splitlines()]
    assert all(line in talks for line in lines)


def test_a_second_run_scores_nothing_again(config, monkeypatch):
    assert select.main(config()) == 0
    before = Path("out/selected.jsonl").read_bytes()
    monkeypatch.setattr("hf_gradkit.selection.tfidf.TfidfScorer", None)
    monkeypatch.setattr("hf_gradkit.selection.nearest.ExactSearch", None)
    assert select.main(config()) == 0
    assert Path("out/selected.jsonl").read_bytes() == before
    assert select.main([*config(fraction=0.5), "--overwrite", "true"]) == 0
    assert len(Path("out/selected.jsonl").read_text().splitlines()) == 20


def test_another_selection_is_replaced_only_when_told_to(config, capsys):
    assert select.main(config()) == 0
    before = Path("out/selected.jsonl").read_bytes()
    assert select.main(config(seed=1)) == 2
    assert "`output_dir` 'out' holds another selection: 10 of 40 rows by 'fifa'" in capsys.readouterr().err
    assert Path("out/selected.jsonl").read_bytes() == before


def test_what_is_in_the_folder_and_is_no_selection(config, capsys):
    assert select.main(config()) == 0
    figures = json.loads(Path("out/selection.json").read_text())
    figures.pop("key")  # as a trainer's filter leaves it
    Path("out/selection.json").write_text(json.dumps(figures))
    assert select.main(config()) == 2
    assert "holds another selection: 10 of 40 rows by 'fifa'" in capsys.readouterr().err
    for content in ("{", "[]", '{"key": 3}'):
        Path("out/selection.json").write_text(content)
        assert select.main(config()) == 2
        assert "'out/selection.json' is not what `gradkit select` writes" in capsys.readouterr().err
    assert select.main([*config(), "--overwrite", "true"]) == 0


def test_functions_of_the_users_own(config, tmp_path, rows):
    parts = {**PARTS, "quality": "test_selection_cli:quality"}
    assert select.main(config(selector_kwargs=parts)) == 0
    scores = pq.read_table("out/scores.parquet").to_pydict()
    assert scores["quality"] == [len(row["prompt"]) for row in rows]


def test_options_on_the_command_line(config, rows, tmp_path):
    flags = ["--selector_kwargs", json.dumps({**PARTS, "method": "greedy"}), "--count", "7", "--seed", "3"]
    assert select.main([*config(selector_kwargs="left out", fraction="left out"), *flags]) == 0
    lines = [json.loads(line) for line in Path("out/selected.jsonl").read_text().splitlines()]
    expected = library(rows, tmp_path, method="greedy", count=7, fraction=None, seed=3)
    assert lines == [rows[i] for i in expected.kept]


@pytest.mark.parametrize(("by", "selector"), [("random", Random), ("length", Length)])
def test_other_selectors(by, selector, config, rows, tmp_path):
    assert select.main(config(by=by, selector_kwargs="left out", seed=5)) == 0
    dataset = Dataset.from_list(rows).rename_column("win", "chosen")
    kept = selector(fraction=0.25, seed=5, cache_folder=tmp_path).select(dataset).kept
    lines = [json.loads(line) for line in Path("out/selected.jsonl").read_text().splitlines()]
    assert lines == [rows[i] for i in kept]
    if by == "length":
        lengths = sorted((len(row["win"]) for row in rows), reverse=True)
        assert sorted((len(line["win"]) for line in lines), reverse=True) == lengths[:10]


@dataclass(frozen=True, kw_only=True)
class FewestWords(Selector):
    """A selector that lives outside the package.

    Args:
        least: rows with fewer words are ruled out.
    """

    least: int = 0

    def assess(self, dataset, work):
        words = np.array([float(len(prompt.split())) for prompt in dataset["prompt"]])
        return Assessment({"words": words, "score": -words}, {"too short": words < self.least})


def test_a_selector_of_the_users_own(config, rows, capsys):
    assert select.main(config(by="test_selection_cli:FewestWords", selector_kwargs={"least": 5})) == 0
    assert "10 of 40 rows kept by FewestWords" in capsys.readouterr().out
    words = [len(row["prompt"].split()) for row in rows]
    kept = [len(json.loads(line)["prompt"].split()) for line in Path("out/selected.jsonl").read_text().splitlines()]
    assert sorted(kept) == sorted(number for number in words if number >= 5)[:10]
    assert select.main(config(by="test_selection_cli:FewestWords", selector_kwargs={"most": 5}, output_dir="b")) == 2
    assert "has no option 'most'" in capsys.readouterr().err


@dataclass(frozen=True, kw_only=True)
class SaysNothing(FewestWords):
    """Cannot say anything of the first and the third row."""

    def assess(self, dataset, work):
        found = super().assess(dataset, work)
        found.columns["score"][[0, 2]] = np.nan
        found.ruled_out["too short"] = np.arange(len(dataset)) == 0
        return found


def test_a_score_that_is_no_number_names_its_row(config, capsys):
    assert select.main(config(by="test_selection_cli:SaysNothing", selector_kwargs={})) == 2
    assert "The `score` of rows [2] of the data is not a finite number" in capsys.readouterr().err
    assert not Path("out/selection.json").exists()


def test_the_page(config, rows, tmp_path):
    result = library(rows, tmp_path, quality=quality)
    page = render(result.report, result.scores)
    assert page.count("data:image/png;base64,") == 2
    for heading in ("Before and after", "Margin and length", "Samples: kept, first", "the nearest and the farthest"):
        assert heading in page
    assert "https://" not in page
    pictures = render(Random(fraction=0.5).select(Dataset.from_list(rows)).report, result.scores)
    assert "Margin and length" in pictures


def test_pushed_to_the_hub(config, tmp_path):
    """A real upload, to a server on this machine, and back."""
    with hub_that_takes(tmp_path / "hub") as hub:
        arguments = [*config(), "--push_to_hub", "true", "--hub_dataset_id", "someone/pairs"]
        command = [sys.executable, "-m", "hf_gradkit.cli.main", "select", *arguments]
        ended = run(command, timeout=120, env=environment(hub, tmp_path / "home"), cwd=tmp_path)
    assert ended.returncode == 0, ended.output[-4000:]
    assert "was pushed to the Hub as someone/pairs" in ended.output
    there = tmp_path / "hub" / "datasets" / "someone" / "pairs"
    names = ["README.md", "report.html", "scores.parquet", "selected.parquet", "selection.json"]
    assert sorted(path.name for path in there.iterdir()) == names
    for name in ("report.html", "scores.parquet", "selection.json"):
        assert (there / name).read_bytes() == Path("out", name).read_bytes()
    rows = [json.loads(line) for line in Path("out", "selected.jsonl").read_text().splitlines()]
    assert Dataset.from_parquet(str(there / "selected.parquet")).to_list() == rows
    page = (there / "README.md").read_text()
    assert 'load_dataset("someone/pairs", split="train")' in page


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"by": "fiva"}, "There is no selector 'fiva'. Did you mean 'fifa'?"),
        ({"fraction": 1.5}, "`fraction` must be above 0 and at most 1, but it is 1.5."),
        ({"count": 41, "fraction": "left out"}, "`count` asks for 41 rows, but the data has 40."),
        ({"fraction": "left out"}, "Set `fraction` or `count`"),
        ({"output_dir": "left out"}, "`output_dir` is not set."),
        ({"dataset_name": "left out"}, "No data is named."),
        ({"dataset_name": "gone.jsonl"}, "The data file 'gone.jsonl' does not exist"),
        ({"eval_dataset_name": "pairs.jsonl"}, "'eval_dataset_name', which is not an option of gradkit select"),
        ({"dataset_streaming": True}, "Load it without streaming"),
        ({"column_mapping": "left out"}, "has no 'chosen'"),
        ({"selector_kwargs": {"metod": "greedy"}}, "has no option 'metod'. Did you mean 'method'?"),
        ({"selector_kwargs": {"fraction": 0.1}}, "`fraction` is an option of its own"),
        (
            {"selector_kwargs": {"margin": {"by": "columns", "chosen": "n"}}},
            "reads the column 'n', but the data has no",
        ),
        ({"selector_kwargs": {**PARTS, "k": 20}}, "`k` is 20, but there are only 20 unique prompts"),
        ({"selector_kwargs": {**PARTS, "quality": "test_selection_cli:short"}}, "for 40 rows"),
        ({"push_to_hub": True}, "`hub_dataset_id` is not set"),
        (
            {"push_to_hub": True, "hub_dataset_id": "some one/pairs"},
            "'some one/pairs' cannot be the name of a repository",
        ),
        ({"fracton": 0.1}, "'fracton', which is not an option of gradkit select. Did you mean 'fraction'?"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(changes, message, config, capsys):
    assert select.main(config(**changes)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not Path("out/selected.jsonl").exists()


def short(rows):
    return [1.0]
