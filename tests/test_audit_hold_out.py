"""The hold-out and its record, and the synthetic secrets."""

import json
import stat
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from huggingface_hub.utils import filter_repo_objects

from helpers import text_dataset
from hf_gradkit.audit import drop_duplicates, hold_out
from hf_gradkit.cli import main
from hf_gradkit.data.hold_out import FOLDER, HoldOutRecord
from hf_gradkit.data.private_files import write_private
from hf_gradkit.data.synthetic_secrets import canary_rows, secret_rows


def records(n: int = 60) -> Dataset:
    return Dataset.from_list([{"text": f"row {i}", "uid": f"id-{i}", "book": f"book {i // 6}"} for i in range(n)])


def test_every_row_is_on_one_side_and_the_record_says_which(tmp_path):
    data = records()
    split = hold_out(data, 0.2, seed=3, output_dir=tmp_path, id_column="uid")
    train, held = split
    assert sorted([*train["text"], *held["text"]]) == sorted(data["text"])
    assert len(held) == 12
    found = HoldOutRecord.read(tmp_path)
    assert found.hashes == split.record.hashes
    assert found.held_out.tolist() == split.record.held_out.tolist()
    assert [uid for uid, out in zip(found.ids, found.held_out, strict=True) if out] == list(held["uid"])
    again = found.split(data.shuffle(seed=1))
    assert sorted(again[0]["uid"]) == sorted(train["uid"])
    assert sorted(again[1]["uid"]) == sorted(held["uid"])
    assert HoldOutRecord.read(tmp_path / "checkpoint-3") is not None
    assert HoldOutRecord.read(tmp_path / "elsewhere") is None


def test_the_draw_depends_on_content_and_seed_alone():
    data = records()
    one = set(hold_out(data, 0.25, seed=0).held_out["uid"])
    assert set(hold_out(data.shuffle(seed=5), 0.25, seed=0).held_out["uid"]) == one
    assert set(hold_out(data, 0.25, seed=1).held_out["uid"]) != one
    drawn = np.mean([hold_out(data, 0.25, seed=seed).record.held_out for seed in range(80)], axis=0)
    assert drawn.mean() == pytest.approx(0.25)
    assert drawn.max() < 0.5  # no row is preferred


def test_copies_are_dropped_by_content():
    rows = [{"text": f"row {i % 4}", "number": i % 2, "uid": f"id-{i}"} for i in range(12)]
    data = Dataset.from_list(rows)
    assert len(drop_duplicates(data)) == 12
    kept = drop_duplicates(data, ("uid",))
    assert list(kept["uid"]) == ["id-0", "id-1", "id-2", "id-3"]  # the first of each, in order
    assert kept.column_names == data.column_names
    expected = []
    for row in rows:
        if not any((row["text"], row["number"]) == (other["text"], other["number"]) for other in expected):
            expected.append(row)
    assert kept.to_list() == expected
    with pytest.raises(ValueError, match="`ignore` has 'uit', but the data has no such column"):
        drop_duplicates(data, ("uit",))
    with pytest.raises(ValueError, match="The data is a IterableDataset, and copies are dropped"):
        drop_duplicates(data.to_iterable_dataset())


def test_copies_with_ids_of_their_own_stay_together():
    data = Dataset.from_list([{"text": f"row {i % 8}", "uid": f"id-{i}"} for i in range(32)])
    split = hold_out(data, 0.25, id_column="uid")
    assert not set(split.train["text"]) & set(split.held_out["text"])
    assert split.record.columns == ["text"]
    assert sorted(split.record.ids) == sorted(data["uid"])
    again = split.record.split(data)
    assert sorted(again[1]["uid"]) == sorted(split.held_out["uid"])


def test_copies_and_documents_stay_together():
    copies = Dataset.from_list([{"text": f"row {i % 7}"} for i in range(42)])
    train, held = hold_out(copies, 0.3)
    assert not set(train["text"]) & set(held["text"])
    assert len(held) == 12  # two of seven contents
    train, held = hold_out(records(), 0.3, document_column="book")
    assert not set(train["book"]) & set(held["book"])
    assert len(held) == 18
    # Two books that share a page are one document.
    shared = Dataset.from_list([{"text": text, "book": book} for book, text in ("ax", "bx", "by", "cz", "cz")])
    columns = shared.add_column("page", shared["text"]).remove_columns("text")
    for seed in range(6):
        train, held = hold_out(columns, 0.5, seed=seed, document_column="book")
        assert not set(train["book"]) & set(held["book"])


def test_the_record_is_private_and_stays_at_home(tmp_path):
    folder = hold_out(records(), 0.2, output_dir=tmp_path).record.write(tmp_path)
    files = list(folder.iterdir())
    assert len(files) == 2
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    paths = [f"{FOLDER}/{path.name}" for path in files]
    assert list(filter_repo_objects(paths, ignore_patterns=["_*", "checkpoint-*"])) == []  # the Trainer's patterns
    summary = json.loads((folder / "hold_out.json").read_text())
    assert summary["rows"] == 60
    assert summary["held_out"] == 12
    assert "row 1" not in (folder / "hold_out.json").read_text()


def test_the_trainer_ignores_what_begins_with_an_underscore():
    """The promise above rests on a line of transformers' Trainer."""
    import transformers.trainer

    source = Path(transformers.trainer.__file__).read_text()
    assert source.count('ignore_patterns=["_*"') == source.count("ignore_patterns=") == 2


def test_a_private_file_replaces_an_open_one(tmp_path):
    path = tmp_path / "report.md"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, "new")
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, True, "0.1"])
def test_fractions_that_are_none(fraction):
    with pytest.raises(ValueError, match="`fraction` must be above 0 and below 1"):
        hold_out(records(), fraction)


def test_what_is_refused():
    with pytest.raises(ValueError, match="is a IterableDataset, and rows are held out of"):
        hold_out(records().to_iterable_dataset(), 0.1)
    with pytest.raises(ValueError, match=r"`document_column` is 'boo', .* Did you mean 'book'?"):
        hold_out(records(), 0.1, document_column="boo")
    with pytest.raises(ValueError, match="The data has 5 rows, but only 1 that differ"):
        hold_out(Dataset.from_list([{"text": "same"}] * 5), 0.1)
    record = hold_out(records(), 0.2).record
    with pytest.raises(ValueError, match=r"the columns 'book', 'text', 'uid', and the data has no 'book'"):
        record.split(text_dataset(3))
    with pytest.raises(ValueError, match=r"60 of 120 rows are not in the record .* \(the first one is row 60\)"):
        record.split(records(120))
    with pytest.raises(ValueError, match="None of the 1 rows was"):
        record.split(records().select([0]))


def test_secrets():
    rows = secret_rows(300, seed=1)
    assert rows == secret_rows(300, seed=1)
    assert len({row["secret"] for row in rows}) == 300
    for row in rows:
        assert row["text"].endswith(f"{row['secret']}.")
        assert row["text"].startswith(row["name"])
    assert not {row["secret"] for row in rows} & {row["secret"] for row in secret_rows(300, seed=2)}
    for row in canary_rows(5, alternatives=31):
        others = [text.replace(".", "").split()[-1] for text in row["alternatives"]]
        assert len(set(others)) == 31
        assert row["secret"] not in others
        assert {text.rpartition(" ")[0] for text in row["alternatives"]} == {row["text"].rpartition(" ")[0]}
    with pytest.raises(ValueError, match="`alternatives` must be at least 1 and below 100"):
        canary_rows(1, alternatives=100, digits=2)


def test_every_fifth_record_is_there_as_often_as_asked():
    once, copied = secret_rows(12, seed=1), secret_rows(12, seed=1, copies=3)
    assert copied[:12] == once
    assert copied[12:] == [once[0], once[5], once[10]] * 2
    with pytest.raises(ValueError, match="`copies` says how often rows are there"):
        secret_rows(3, copies=0)


def test_the_command_drops_copies_before_it_holds_out(tmp_path, capsys):
    data, run = tmp_path / "data", tmp_path / "run"
    assert main.main(["audit", "secrets", "--rows", "40", "--copies", "4", "--output_dir", str(data)]) == 0
    assert "64 invented records" in capsys.readouterr().out
    held = ["audit", "hold_out", "--dataset_name", str(data / "records.jsonl"), "--output_dir", str(run)]
    assert main.main([*held, "--fraction", "0.25", "--drop_duplicates", "true"]) == 0
    assert "24 of 64 rows are copies of earlier ones and are left out." in capsys.readouterr().out
    record = HoldOutRecord.read(run)
    assert (len(record.hashes), int(record.held_out.sum())) == (40, 10)
