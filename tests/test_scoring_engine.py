"""The forward engine: every row once, in order, whatever happens on the way."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from accelerate import PartialState

from hf_gradkit.scoring import NonFiniteScoreError, load_scores, score_rows
from hf_gradkit.scoring.work import WorkFolder, read_stream
from launch import CONFIGS, _kill, free_port, launch
from workers.score_cases import Doubler

WORKER = Path(__file__).parent / "workers" / "score_cases.py"


@pytest.fixture
def scorer(tmp_path):
    return Doubler(tmp_path / "log")


def finished_rows(folder: Path) -> list[int]:
    """Return the rows of all streams, as often as they are there."""
    streams = sorted((folder / "streams").glob("*.arrow"))
    return [row for path in streams for batch in read_stream(path) for row in batch.column("row").to_pylist()]


# ---- what comes out -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "batch_size"), [(1, 4), (20, 1), (23, 4), (23, 50)])
def test_each_row_is_scored_once_and_comes_out_in_order(rows, batch_size, scorer, tmp_path):
    scores = score_rows(list(range(rows)), scorer, tmp_path / "work", "a", batch_size)
    assert scores.columns["double"].tolist() == [2.0 * i for i in range(rows)]
    assert scores.columns["vector"].tolist() == [[i, -i] for i in range(rows)]
    assert scores.columns["vector"].dtype == np.float32
    assert scores.scored == rows
    assert sorted(i for batch in scorer.batches for i in batch) == list(range(rows))
    assert max(map(len, scorer.batches)) <= batch_size


def test_longest_first_and_like_with_like(scorer, tmp_path):
    score_rows(list(range(23)), scorer, tmp_path / "work", "a", 4)
    lengths = [scorer.length(i) for batch in scorer.batches for i in batch]
    assert lengths == sorted(lengths, reverse=True)


def test_what_is_done_is_not_done_again(scorer, tmp_path):
    first = score_rows(list(range(9)), scorer, tmp_path / "work", "a", 4)
    assert load_scores(tmp_path / "work", "b", scorer.columns, 9) is None
    kept = load_scores(tmp_path / "work", "a", scorer.columns, 9)
    again = score_rows(list(range(9)), Doubler(tmp_path / "other", fails_after=0), tmp_path / "work", "a", 2)
    assert again.scored == 0
    for name in scorer.columns:
        assert (again.columns[name] == first.columns[name]).all()
        assert (kept[name] == first.columns[name]).all()
    assert not (tmp_path / "work" / "streams").exists()


def test_two_jobs_in_one_folder_at_once(tmp_path):
    """Both claim the folder before either has a row: rows are scored twice then, and count once."""

    class Other(Doubler):
        def score(self, items):
            if not self.batches:  # in the middle of this job, another one does all of it
                score_rows(list(range(9)), Doubler(tmp_path / "log"), tmp_path / "work", "a", 2)
            return super().score(items)

    scores = score_rows(list(range(9)), Other(tmp_path / "other"), tmp_path / "work", "a", 4)
    assert scores.columns["double"].tolist() == [2.0 * i for i in range(9)]


# ---- after a kill ---------------------------------------------------------------------------------------------


def test_a_run_goes_on_with_another_batch_size(tmp_path):
    broken = Doubler(tmp_path / "log", fails_after=3)
    with pytest.raises(RuntimeError, match="out of memory"):
        score_rows(list(range(20)), broken, tmp_path / "work", "a", 4)
    done = finished_rows(tmp_path / "work")
    assert len(done) == 12
    second = Doubler(tmp_path / "log2")
    scores = score_rows(list(range(20)), second, tmp_path / "work", "a", 3)
    assert scores.scored == 8
    assert sorted([*done, *(i for batch in second.batches for i in batch)]) == list(range(20))
    assert scores.columns["double"].tolist() == [2.0 * i for i in range(20)]


def test_a_torn_stream_loses_its_last_batch_at_most(scorer, tmp_path):
    """Cut at every byte: what is read is whole batches, from the first on, with the values that were written."""
    with WorkFolder(tmp_path / "work", "a", scorer.columns, 12).stream(0) as stream:
        for start in range(0, 12, 3):
            rows = np.arange(start, start + 3)
            stream.append(rows, scorer.score(rows.tolist()))
    (path,) = (tmp_path / "work" / "streams").glob("*.arrow")
    content, seen = path.read_bytes(), set()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        batches = list(read_stream(path))
        rows = [row for batch in batches for row in batch.column("row").to_pylist()]
        assert rows == list(range(len(rows)))
        assert [value for batch in batches for value in batch.column("double").to_pylist()] == [2.0 * i for i in rows]
        seen.add(len(rows))
    assert seen == {0, 3, 6, 9, 12}  # at 12, only the mark of the end is gone


def test_a_torn_stream_is_not_written_to(scorer, tmp_path):
    with pytest.raises(RuntimeError):
        score_rows(list(range(12)), Doubler(tmp_path / "log", fails_after=2), tmp_path / "work", "a", 3)
    (path,) = (tmp_path / "work" / "streams").glob("*.arrow")
    path.write_bytes(path.read_bytes()[:-100])  # tears the second batch
    scores = score_rows(list(range(12)), scorer, tmp_path / "work", "a", 3)
    assert scores.scored == 9
    assert scores.columns["double"].tolist() == [2.0 * i for i in range(12)]


# ---- what is refused ------------------------------------------------------------------------------------------


def test_another_key_is_never_mixed_in(scorer, tmp_path):
    with pytest.raises(RuntimeError):
        score_rows(list(range(12)), Doubler(tmp_path / "log", fails_after=2), tmp_path / "work", "a", 3)
    for arguments in ((list(range(12)), "b"), (list(range(13)), "a")):
        with pytest.raises(ValueError, match="the scores of another model, other data or other settings"):
            score_rows(arguments[0], scorer, tmp_path / "work", arguments[1], 3)
    assert scorer.batches == []
    scores = score_rows(list(range(12)), scorer, tmp_path / "work", "b", 3, replace=True)
    assert scores.scored == 12
    score_rows(list(range(5)), scorer, tmp_path / "work", "c", 3, replace=True)
    assert load_scores(tmp_path / "work", "c", scorer.columns, 5)["double"].tolist() == [0, 2, 4, 6, 8]


def test_a_score_that_is_not_finite_names_the_rows_of_the_data(tmp_path):
    class Broken(Doubler):
        def score(self, items):
            scores = super().score(items)
            scores["vector"][[item == 5 for item in items], 1] = np.inf
            return scores

    with pytest.raises(NonFiniteScoreError, match=r"'vector' of rows \[105\] of the data is not a finite number"):
        score_rows(list(range(8)), Broken(tmp_path / "log"), tmp_path / "work", "a", 2, rows=range(100, 108))
    assert 5 not in finished_rows(tmp_path / "work")


def test_rows_that_are_missing_in_the_end(scorer, tmp_path):
    work = WorkFolder(tmp_path / "work", "a", scorer.columns, 4)
    work.open()
    with work.stream(0) as stream:
        stream.append(np.array([0, 1, 3]), scorer.score([0, 1, 3]))
    with pytest.raises(ValueError, match=r"1 of 4 rows have no score .* \(the first one is 2\).* must see the same"):
        work.finish()
    with pytest.raises(ValueError, match="this one does not see it"):
        work.read()


@pytest.mark.parametrize("size", [0, -1, 2.0, True])
def test_batch_sizes_that_are_none(size, scorer, tmp_path):
    with pytest.raises(ValueError, match="`batch_size` must be an integer of at least 1"):
        score_rows([1, 2], scorer, tmp_path / "work", "a", size)


def test_a_scorer_that_does_not_keep_its_word(scorer, tmp_path):
    with pytest.raises(ValueError, match="There is nothing to score"):
        score_rows([], scorer, tmp_path / "work", "a")
    scorer.score = lambda items: {"double": np.zeros(len(items))}
    with pytest.raises(ValueError, match="promised the columns 'double', 'vector' and returned 'double'"):
        score_rows([1, 2], scorer, tmp_path / "work", "a")
    scorer.score = lambda items: {"double": np.zeros(1), "vector": np.zeros((2, 2))}
    with pytest.raises(ValueError, match="returned 1 values of 'double' for a batch of 2"):
        score_rows([1, 2], scorer, tmp_path / "work", "a")


def test_processes_that_do_not_know_each_other(scorer, tmp_path, monkeypatch):
    PartialState()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were started, but this one would score alone"):
        score_rows([1, 2], scorer, tmp_path / "work", "a")


# ---- real processes -------------------------------------------------------------------------------------------


def write_case(folder: Path, **case) -> list[str]:
    path = folder / f"{case['name']}.json"
    path.write_text(json.dumps({"kind": "numbers", "rows": 60, **case}))
    return [str(path), str(folder)]


@pytest.mark.multiprocess
def test_killed_twice_and_finished_by_another_number_of_processes(tmp_path):
    """Two processes are killed with SIGKILL, one fails, two others finish: no finished row is scored twice."""
    arguments = write_case(tmp_path, name="first", batch_size=2, seconds=0.3)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    command += [str(CONFIGS / "cpu" / "multi_gpu.yaml"), "--main_process_port", str(free_port()), str(WORKER)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    process = subprocess.Popen([*command, *arguments], env=environment, stderr=subprocess.DEVNULL)
    end = time.time() + 90
    while len(set(finished_rows(tmp_path / "work"))) < 12 and time.time() < end:
        time.sleep(0.05)
    _kill(process.pid)
    process.wait()
    first = finished_rows(tmp_path / "work")
    assert 12 <= len(first) < 60
    assert len({path.name[:10] for path in (tmp_path / "work" / "streams").iterdir()}) == 2

    with pytest.raises(RuntimeError):
        score_rows(list(range(60)), Doubler(tmp_path / "log", fails_after=3), tmp_path / "work", "numbers", 3)
    second = finished_rows(tmp_path / "work")
    assert len(second) == len(set(second)) == len(first) + 9

    launch(WORKER, write_case(tmp_path, name="third", batch_size=4)).assert_world("MULTI_CPU")
    logs = [[int(line) for line in path.read_text().split()] for path in tmp_path.glob("third.log*")]
    assert len(logs) == 2
    assert sorted([*second, *logs[0], *logs[1]]) == list(range(60))
    for rank in (0, 1):
        result = json.loads((tmp_path / f"third.rank{rank}.json").read_text())
        assert result == {"double": [2.0 * i for i in range(60)], "scored": 60 - len(second)}
