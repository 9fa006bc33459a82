"""What `gradkit report` reads of the files that monitors write: whole ones, half-written ones, harmed ones."""

import json

import pytest

from hf_gradkit.callbacks.figures_log import FiguresLog
from hf_gradkit.cli import main
from hf_gradkit.reporting import audit, consistency, entanglement, gradient_statistics
from hf_gradkit.reporting.runs import read_run

RATIO = "consistency/loss_dispersion"
LINES = [{"step": step, RATIO: 0.5, f"{RATIO}_expected": 0.4} for step in (1, 2, 3)]
FOUND = [{"step": 2, "consistency/repeated": 13.0}, {"step": 3, "consistency/repeated": 69.0}]
FOUND += [{"step": 3, "consistency/missing": 12.0}, {"step": 4, "consistency/repeated": 40.0}]
READERS = {
    consistency.FILE: consistency.read_consistency,
    entanglement.FILE: entanglement.read_entanglement,
    gradient_statistics.FILE: gradient_statistics.read_statistics,
    audit.LOG: audit.read_audit_log,
}


@pytest.fixture
def run(tmp_path):
    """A folder with a run's logs: the mean of what the monitor found since the log before."""
    folder = tmp_path / "run"
    folder.mkdir()
    history = [{"step": 3, "loss": 1.0, "consistency/repeated": 41.0}, {"step": 4, "consistency/repeated": 40.0}]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    return folder


def write(path, lines, ending="\n"):
    path.write_text("\n".join(map(json.dumps, lines)) + ending)


@pytest.mark.parametrize("name", READERS)
def test_a_last_line_that_was_not_written_to_its_end_is_left_out(name, run):
    read = READERS[name]
    assert read(run) == []
    for ending, number in (("\n", 3), ("", 3), ("\n" + json.dumps(LINES[0])[:-4], 3), ("\n\n", 3)):
        write(run / name, LINES, ending)
        assert read(run) == LINES[:number]


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("harmed", ['{"step": 2, "cons', "[2]", '{"loss": 1.0}', "\0\0\0"])
def test_another_line_is_named(name, harmed, run):
    (run / name).write_text(f"{json.dumps(LINES[0])}\n{harmed}\n{json.dumps(LINES[2])}\n")
    with pytest.raises(
        ValueError, match=rf"Line 2 of .*{name} is not one that a monitor writes: .* take the line out"
    ):
        READERS[name](run)
    log = FiguresLog(name.removesuffix(".jsonl"))
    with pytest.raises(ValueError, match=f"Line 2 of .*{name}"):
        log.start(str(run), 3, writes=True)


def test_the_report_of_a_run_that_was_killed_while_it_wrote(run, capsys):
    write(run / consistency.FILE, LINES, "\n" + json.dumps(LINES[0])[:-4])
    assert main.main(["report", str(run)]) == 0
    assert "Consistency of workers" in (run / "report.html").read_text()
    (run / consistency.FILE).write_text("half\n")
    assert main.main(["report", str(run)]) == 2
    assert f"Line 1 of {run / consistency.FILE}" in capsys.readouterr().err


def test_rows_that_workers_shared_or_left_out_are_counted(run):
    """Of the epoch with the most: what is logged grows from an epoch's start."""
    assert consistency.rows_between_workers(read_run(run)) == {"repeated": 41.0}
    write(run / consistency.FILE, LINES)
    assert consistency.rows_between_workers(read_run(run)) == {}
    assert consistency.consistency_findings([read_run(run)]) == []
    write(run / consistency.FILE, LINES + FOUND)
    assert main.main(["report", str(run)]) == 0
    words = "run: in one epoch 69 rows were seen by several workers, and 12 rows by none."
    assert words in (run / "report.html").read_text()
