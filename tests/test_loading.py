"""Every kind of data that a job can name, read by the real builders, and what is said about the wrong ones."""

import gzip
import json

import pytest
from datasets import Dataset, DatasetDict
from trl import DatasetMixtureConfig

from hf_gradkit.data.loading import load_mixture, load_split, map_columns

ROWS = [{"question": f"q{i}", "answer": f"a{i}"} for i in range(6)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.fixture
def folder(tmp_path):
    """A folder with the same rows in every format, and what is no data."""
    dataset = Dataset.from_list(ROWS)
    (tmp_path / "rows.jsonl").write_text(LINES)
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    for name, text in (("rows.jsonl.gz", LINES), ("rows.json.gz", json.dumps(ROWS))):
        with gzip.open(tmp_path / name, "wt") as file:
            file.write(text)
    dataset.to_parquet(tmp_path / "rows.parquet")
    dataset.to_csv(tmp_path / "rows.csv")
    (tmp_path / "rows.xlsx").write_text("no")
    return tmp_path


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["jsonl", "json", "jsonl.gz", "json.gz", "parquet", "csv"])
def test_files(folder, kind, streaming):
    dataset = load_split(str(folder / f"rows.{kind}"), "train", streaming=streaming)
    assert list(dataset) == ROWS


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_a_folder_of_files_has_splits(tmp_path, suffix, streaming):
    opener = gzip.open if suffix.endswith("gz") else open
    for split, rows in (("train", ROWS[:4]), ("test", ROWS[4:])):
        with opener(tmp_path / f"{split}.{suffix}", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "README.md").write_text("what this is")
    assert list(load_split(str(tmp_path), "train", streaming=streaming)) == ROWS[:4]
    assert list(load_split(str(tmp_path), "test", streaming=streaming)) == ROWS[4:]


@pytest.mark.parametrize("streaming", [False, True])
def test_saved_to_disk(tmp_path, streaming):
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    DatasetDict(train=Dataset.from_list(ROWS[:4]), test=Dataset.from_list(ROWS[4:])).save_to_disk(tmp_path / "two")
    assert list(load_split(str(tmp_path / "one"), "train", streaming=streaming)) == ROWS
    assert list(load_split(str(tmp_path / "two"), "test", streaming=streaming)) == ROWS[4:]
    with pytest.raises(ValueError, match=r"no split 'tset'. Did you mean 'test'\? Its splits: 'train', 'test'"):
        load_split(str(tmp_path / "two"), "tset", streaming=streaming)


def test_part_of_a_split(folder):
    assert len(load_split(str(folder / "rows.jsonl"), "train[:2]")) == 2
    with pytest.raises(ValueError, match="part of a split"):
        load_split(str(folder / "rows.jsonl"), "train[:2]", streaming=True)


def test_a_file_is_the_training_split_unless_it_was_named_for_evaluation(folder):
    name = str(folder / "rows.jsonl")
    with pytest.raises(ValueError, match=r"no split 'test'.*Its splits: 'train'"):
        load_split(name, "test")
    assert len(load_split(name, "test[:3]", file_split="test")) == 3


@pytest.mark.parametrize("name", ["none.jsonl", "./none", "/no/where", "a/b/c"])
def test_a_missing_file(name):
    with pytest.raises(ValueError, match="does not exist"):
        load_split(name, "train")


def test_an_unknown_extension(folder, tmp_path_factory):
    with pytest.raises(ValueError, match=r"unknown extension. Known ones: '.json', '.jsonl', '.parquet', '.csv'"):
        load_split(str(folder / "rows.xlsx"), "train")
    with pytest.raises(ValueError, match="holds no data file"):
        load_split(str(tmp_path_factory.mktemp("empty")), "train")


@pytest.mark.parametrize("streaming", [False, True])
def test_column_mapping(folder, streaming):
    data = load_split(str(folder / "rows.jsonl"), "train", streaming=streaming)
    mapped = map_columns(data, {"question": "prompt", "answer": "completion"})
    assert next(iter(mapped)) == {"prompt": "q0", "completion": "a0"}
    assert next(iter(map_columns(data, {"question": "answer", "answer": "question"}))) == {
        "answer": "q0",
        "question": "a0",
    }
    with pytest.raises(ValueError, match=r"renames 'quest', .*Did you mean 'question'\? Its columns: 'question', 'a"):
        map_columns(data, {"quest": "prompt"})
    with pytest.raises(ValueError, match=r"renames 'question' to 'answer', .* two columns"):
        map_columns(data, {"question": "answer"})
    with pytest.raises(ValueError, match="two columns"):
        map_columns(data, {"question": "text", "answer": "text"})


@pytest.mark.parametrize("streaming", [False, True])
def test_mixtures(folder, streaming):
    entries = [
        {"path": str(folder / "rows.jsonl"), "columns": ["question"]},
        {"path": "parquet", "data_files": str(folder / "rows.parquet"), "columns": ["question"]},
    ]
    splits = load_mixture(DatasetMixtureConfig(datasets=entries, streaming=streaming))
    assert [row["question"] for row in splits["train"]] == [row["question"] for row in ROWS] * 2


def test_mixtures_that_cannot_be(folder):
    with pytest.raises(ValueError, match=r"'gone\.jsonl', which does not exist"):
        load_mixture(DatasetMixtureConfig(datasets=[{"path": "gone.jsonl"}]))
    entries = [{"path": str(folder / "rows.jsonl")}]
    with pytest.raises(ValueError, match="streamed mixture cannot be split"):
        load_mixture(DatasetMixtureConfig(datasets=entries, streaming=True, test_split_size=0.5))
    assert set(load_mixture(DatasetMixtureConfig(datasets=entries, test_split_size=0.5))) == {"train", "test"}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet"])
def test_a_file_that_ends_early(folder, kind, streaming):
    """A short stream of JSON lines is read as it is needed: the end is missed then."""
    path = folder / f"rows.{kind}"
    path.write_bytes(path.read_bytes()[:-9])
    streams = streaming and kind == "jsonl"
    message = "JSON parse error" if streams else rf"rows.{kind}' cannot be read to its end: .*Was a file cut short"
    with pytest.raises(ValueError, match=message):
        list(load_split(str(path), "train", streaming=streaming))
