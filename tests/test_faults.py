"""Real faults in real processes: what is left is found, and the run that goes on equals the one that never stopped."""

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers import make_rows
from hf_gradkit.cli import sft
from hf_gradkit.data.tiny import tiny_llama
from hf_gradkit.reporting import read_example_log
from hf_gradkit.trainers.mixin import STATE_FILE
from launch import launch

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(1800)]

WORKER = Path(__file__).parent / "workers" / "fault_job.py"
OPTIONS = {
    "model_name_or_path": "policy",
    "dataset_name": "rows.jsonl",
    "max_steps": 10,  # 26 rows are four steps an epoch
    "save_steps": 2,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "weighting": "linupper",
    "weighting_kwargs": '{"warmup_ratio": 0.0, "temperature": 0.4, "window": 16}',
    "group_column": "source",
    "example_id_column": "uid",
    "example_log": True,
    "model_init_kwargs": '{"attention_dropout": 0.2}',
    "dtype": "float32",
    "activation_checkpointing": False,
    "bf16": False,
    "use_cpu": True,
    "disable_tqdm": True,
    "report_to": "none",
}


@pytest.fixture(scope="module")
def workplace(tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    torch.manual_seed(0)
    tiny_llama(tokenizer, hidden_size=32).save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "policy")
    rows = [{name: row[name] for name in ("text", "source", "uid")} for row in make_rows(26)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def start(workplace: Path, out: str, backend: str = "multi_gpu", fault: dict | None = None, **changes):
    options = {**OPTIONS, "output_dir": out, **changes}
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    environment = {"GRADKIT_TEST_FAULT": json.dumps(fault or {})}
    # As where files are on a full disk: no bytecode, which would be cut short as well.
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    return launch(WORKER, arguments, f"cpu/{backend}", 300, workplace, environment)


def assert_same_run(run: Path, whole: Path, last: int = 10) -> None:
    """The same model, states, logs, and one row an example and epoch; `last`: the step of the last checkpoint."""
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (run, whole))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    states = [torch.load(folder / f"checkpoint-{last}" / STATE_FILE, weights_only=True) for folder in (run, whole)]
    assert str(states[0] | {"log_part": 0}) == str(states[1] | {"log_part": 0})  # more checkpoints, more parts
    histories = [json.loads((folder / "trainer_state.json").read_text())["log_history"] for folder in (run, whole)]
    for entry, expected in zip(*([e for e in history if "loss" in e] for history in histories), strict=True):
        expected.pop("num_tokens")  # TRL counts them from the start of the process
        assert {key: entry[key] for key in expected} == expected
    rows = [read_example_log(str(folder)).to_pylist() for folder in (run, whole)]
    rows = [sorted(of_run, key=lambda row: (row["step"], row["example_id"])) for of_run in rows]
    assert rows[0] == rows[1]
    keys = [(row["example_id"], row["epoch"]) for row in rows[0]]
    assert len(keys) == len(set(keys)) > 26


def test_data_that_ends_early(workplace, monkeypatch, capsys):
    """The second file of a stream is cut short, which shows when the run comes to it; mended, the run goes on."""
    monkeypatch.chdir(workplace)
    lines = (workplace / "rows.jsonl").read_text().splitlines(keepends=True)
    (workplace / "parts").mkdir()
    (workplace / "parts" / "train-1.jsonl").write_text("".join(lines[:16]))
    second = workplace / "parts" / "train-2.jsonl"
    streamed = {"dataset_name": "parts", "dataset_streaming": True, "max_steps": 6}

    def job(out: str, **changes):
        options = {**OPTIONS, **streamed, "output_dir": out, **changes}
        return sft.main([part for name, value in options.items() for part in (f"--{name}", str(value))])

    second.write_text("".join(lines[16:])[:-20])
    assert job("early", save_steps=1) == 2
    said = capsys.readouterr().err
    assert "JSON parse error" in said
    step = int(said.partition("after step ")[2].partition(".")[0])
    assert step >= 2
    assert f"The last whole checkpoint is early/checkpoint-{step}" in said
    second.write_text("".join(lines[16:]))
    assert job("early", resume_from_checkpoint=True, save_steps=1) == 0
    assert job("never early") == 0
    ours, theirs = (load_file(workplace / out / "model.safetensors") for out in ("early", "never early"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    logs = [read_example_log(str(workplace / out)).to_pylist() for out in ("early", "never early")]
    assert logs[0] == logs[1]


def test_one_fault_after_the_other(workplace):
    whole = start(workplace, "whole")
    whole.assert_backend("multi_gpu")
    run = workplace / "run"

    ended = start(workplace, "run", fault={"kind": "kill", "rank": 1, "step": 3})
    assert ended.returncode != 0
    assert "The run ended with" in ended.output
    assert "last whole checkpoint is run/checkpoint-2" in ended.output

    ended = start(workplace, "run", fault={"kind": "kill in save", "rank": 0, "step": 4}, resume_from_checkpoint=True)
    assert "run/checkpoint-2" in ended.output
    assert ended.returncode != 0
    assert (run / "checkpoint-4" / "model.safetensors").exists()

    ended = start(workplace, "run", fault={"kind": "disk full", "step": 6}, resume_from_checkpoint=True)
    assert "run/checkpoint-4 is not whole: writing it did not come to its end" in ended.output
    assert "The run goes on from run/checkpoint-2" in ended.output
    assert "run/checkpoint-4 was there already and is written anew" in ended.output
    assert ended.returncode != 0
    assert "The checkpoint run/checkpoint-6 could not be written" in ended.output
    assert "The last whole checkpoint is run/checkpoint-4" in ended.output

    ended = start(
        workplace, "run", fault={"kind": "signal", "number": signal.SIGTERM, "step": 7}, resume_from_checkpoint=True
    )
    assert "The run goes on from run/checkpoint-4" in ended.output
    assert ended.returncode != 0
    assert ended.output.count("SIGTERM: the run stopped after step 7 of 10 and saved run/checkpoint-7.") == 1
    assert (run / "checkpoint-7").is_dir()

    ended = start(
        workplace, "run", fault={"kind": "signal", "number": signal.SIGINT, "step": 9}, resume_from_checkpoint=True
    )
    assert "run/checkpoint-7" in ended.output
    assert ended.returncode != 0

    last = start(workplace, "run", resume_from_checkpoint=True)
    last.assert_backend("multi_gpu")
    assert_same_run(run, workplace / "whole")


@pytest.mark.parametrize("backend", ["fsdp2", "zero3"])
def test_a_kill_in_a_sharded_checkpoint(backend, workplace):
    """All parts are there but the last file: the checkpoint does not count."""
    out, whole = f"{backend} run", f"{backend} whole"
    start(workplace, whole, backend, max_steps=5).assert_backend(backend)
    ended = start(workplace, out, backend, {"kind": "kill after list", "rank": 0, "step": 4}, max_steps=5)
    assert ended.returncode != 0
    assert (workplace / out / "checkpoint-4" / "checkpoint_files.json").exists()
    last = start(workplace, out, backend, max_steps=5, resume_from_checkpoint=True)
    last.assert_backend(backend)
    assert f"{out}/checkpoint-4 is not whole: writing it did not come to its end" in last.output
    assert f"The run goes on from {out}/checkpoint-2" in last.output
    assert_same_run(workplace / out, workplace / whole, last=4)
