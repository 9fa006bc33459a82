"""Replacing a selection: a kill at any point leaves the old one whole, or what says that it is unfinished."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from run_folders import snapshot

from hf_gradkit.cli.main import main
from launch import run
from pairs import make_pairs, write_pairs

ROWS = 24
UNFINISHED = "holds an unfinished selection: gradkit select was stopped before it wrote selection.json"


class Killed(BaseException):
    """What no handler of errors catches."""


@pytest.fixture
def old(tmp_path, monkeypatch):
    """A folder with a selection of 6 rows, from JSON lines, in the working directory."""
    monkeypatch.chdir(tmp_path)
    rows = make_pairs(ROWS, "prompt")
    write_pairs(Path("pairs.jsonl"), rows)
    Dataset.from_list(rows).to_parquet("pairs.parquet")
    assert main(command("pairs.jsonl", 6, "old")) == 0
    return Path("old")


def command(name: str, count: int, output: str) -> list[str]:
    select = ["select", "--dataset_name", name, "--by", "random", "--count", str(count), "--output_dir", output]
    return [*select, "--overwrite", "true"]


def kill_before(number: int, folder: Path, monkeypatch) -> list[str]:
    """Raise before a file of the folder is replaced or removed for this time, from 0; return what was done."""
    done: list[str] = []

    def watch(name, function):
        def call(*arguments, **keywords):
            path = Path(arguments[-1])
            if path.resolve().parent != folder.resolve() or (name == "remove" and not path.exists()):
                return function(*arguments, **keywords)
            if len(done) == number:
                raise Killed
            done.append(f"{name} {path.name}")
            return function(*arguments, **keywords)

        return call

    monkeypatch.setattr(os, "replace", watch("write", os.replace))
    monkeypatch.setattr(Path, "unlink", watch("remove", Path.unlink))
    return done


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.parquet"])
def test_killed_before_any_change(name, old, monkeypatch, capsys):
    whole = snapshot(old)
    for number in range(20):
        shutil.rmtree("out", ignore_errors=True)
        shutil.rmtree("page", ignore_errors=True)
        shutil.copytree(old, "out")
        with monkeypatch.context() as patched:
            done = kill_before(number, Path("out"), patched)
            try:
                assert main(command(name, 12, "out")) == 0
            except Killed:
                pass
            else:
                break
        capsys.readouterr()
        pushed = main(["push", "out", "someone/pairs", "--dry_run", "page"])
        if pushed == 0:
            assert not done
            assert {file: content for file, content in snapshot(Path("out")).items() if file in whole} == whole
        else:
            assert pushed == 2
            said = capsys.readouterr().err
            assert UNFINISHED in said
            assert "Run the same command again" in said
        assert main(command(name, 12, "out")) == 0
        assert len(list(Path("out").glob("selected.*"))) == 1
        assert json.loads(Path("out/selection.json").read_text())["kept"] == 12
    removed = ["remove selected.jsonl"] if name.endswith("parquet") else []
    data = f"write selected.{name.partition('.')[2]}"
    rest = ["write README.md", "write scores.parquet", "write report.html", "write selection.json"]
    assert done == ["remove selection.json", data, *removed, *rest]
    assert main(["push", "out", "someone/pairs", "--dry_run", "page"]) == 0
    assert pq.read_metadata("page/selected.parquet").num_rows == 12


KILLED = """
import os, signal, sys
from hf_gradkit.cli import main, select
select.write_selection_files = lambda *arguments, **facts: os.kill(os.getpid(), signal.SIGKILL)
main.main(sys.argv[1:])
"""


def test_a_real_kill(old, capsys):
    ended = run([sys.executable, "-c", KILLED, *command("pairs.jsonl", 12, "old")], cwd=Path.cwd())
    assert ended.returncode == -signal.SIGKILL, ended.output[-2000:]
    assert len(Path("old/selected.jsonl").read_text().splitlines()) == 12
    assert main(["push", "old", "someone/pairs", "--dry_run", "page"]) == 2
    assert UNFINISHED in capsys.readouterr().err
    assert not Path("page").exists()
    assert main(command("pairs.jsonl", 12, "old")) == 0
    assert main(["push", "old", "someone/pairs", "--dry_run", "page"]) == 0


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.parquet"])
def test_rows_of_another_selection_are_not_pushed(name, old, capsys):
    assert main(command(name, 6, "old")) == 0
    assert main(command(name, 12, "other")) == 0
    (data,) = Path("other").glob("selected.*")
    shutil.copy(data, Path("old") / data.name)
    assert main(["push", "old", "someone/pairs", "--dry_run", "page"]) == 2
    said = capsys.readouterr().err
    assert "has 12 rows, and selection.json beside it speaks of 6" in said
    assert "Run gradkit select again" in said
    assert not Path("page").exists()
