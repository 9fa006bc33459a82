"""Dates of JSON files, of which what reads them makes timestamps, come out of a selection as they were written."""

import gzip
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hf_gradkit.cli import select
from pairs import make_pairs, write_pairs


@pytest.fixture
def rows():
    return [
        {"prompt": row["prompt"], "win": row["chosen"], "rejected": row["rejected"]}
        for row in make_pairs(40, "prompt")
    ]


DATES = {"created": "2024-01-{:02}T10:00:00Z", "day": "2024-01-{:02}", "zone": "2024-01-{:02}T10:00:00+02:00"}


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.json", "pairs.jsonl.gz"])
def test_dates_stay_as_they_are_written(name, rows, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for i, row in enumerate(rows):
        row |= {key: text.format(i % 28 + 1) for key, text in DATES.items()}
        row["meta"] = {"seen": [row["created"]], "n": i}
    text = json.dumps(rows, indent=1) if name == "pairs.json" else "".join(json.dumps(row) + "\n\n" for row in rows)
    with (gzip.open if name.endswith(".gz") else open)(name, "wt") as file:
        file.write(text)
    options = ["--column_mapping", '{"win": "chosen"}', "--by", "random", "--count", "9", "--output_dir", "out"]
    assert select.main(["--dataset_name", f"~/{name}", *options]) == 0
    written = Path("out", "selected.jsonl.gz" if name.endswith(".gz") else "selected.jsonl")
    lines = (gzip.open if name.endswith(".gz") else open)(written, "rt").read().splitlines()
    kept = [row for row, chosen in enumerate(pq.read_table("out/scores.parquet")["kept"].to_pylist()) if chosen]
    assert [json.loads(line) for line in lines] == [rows[row] for row in kept]


def test_dates_of_a_part_of_a_file_are_those_of_its_rows(rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pairs(
        tmp_path / "pairs.jsonl", [row | {"day": f"2024-01-{i % 28 + 1:02}", "i": i} for i, row in enumerate(rows)]
    )
    options = ["--column_mapping", '{"win": "chosen"}', "--by", "random", "--count", "5", "--output_dir", "out"]
    assert select.main(["--dataset_name", "pairs.jsonl", "--dataset_train_split", "train[10:20]", *options]) == 0
    for line in Path("out/selected.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert row["day"].startswith(f"2024-01-{row['i'] % 28 + 1:02}")
