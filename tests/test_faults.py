"""Real faults in real processes: what is left is found, and the run that goes on equals the one that never stopped."""

import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers import make_rows
from hf_gradkit.cli import sft
from hf_gradkit.data.tiny import tiny_llama
from hf_gradkit.reporting import read_example_log
from hf_gradkit.trainers.checkpoints import STATE_FILE, last_whole_checkpoint
from launch import launch, run

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


@pytest.fixture(scope="module")
def whole(workplace) -> Path:
    """The run that nothing happens to."""
    start(workplace, "whole").assert_backend("multi_gpu")
    return workplace / "whole"


def arguments(out: str, **changes) -> list[str]:
    options = {**OPTIONS, "output_dir": out, **changes}
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]


def environment(fault: dict | None) -> dict[str, str]:
    # As where files are on a full disk: no bytecode, which would be cut short as well.
    return {"GRADKIT_TEST_FAULT": json.dumps(fault or {}), "PYTHONDONTWRITEBYTECODE": "1"}


def start(workplace: Path, out: str, backend: str = "multi_gpu", fault: dict | None = None, **changes):
    return launch(WORKER, arguments(out, **changes), f"cpu/{backend}", 300, workplace, environment(fault))


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
    streamed = {"dataset_name": "parts", "dataset_streaming": True}

    def job(out: str, **changes):
        return sft.main(arguments(out, **streamed, **{"max_steps": 6, **changes}))

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


def test_one_fault_after_the_other(workplace, whole):
    out = workplace / "run"

    ended = start(workplace, "run", fault={"kind": "kill", "rank": 1, "step": 3})
    assert ended.returncode != 0
    assert "The run ended with" in ended.output
    assert "last whole checkpoint is run/checkpoint-2" in ended.output

    ended = start(workplace, "run", fault={"kind": "kill in save", "rank": 0, "step": 4}, resume_from_checkpoint=True)
    assert ended.returncode != 0
    assert "Another process ended meanwhile" in ended.output
    assert "[rank 1] The run ended with CheckpointError after step 4" in ended.output  # the first one cannot say it
    assert "last whole checkpoint is run/checkpoint-2: resume_from_checkpoint=True" in ended.output
    assert (out / "checkpoint-4" / "model.safetensors").exists()

    room = (out / "checkpoint-2" / "model.safetensors").stat().st_size + 1000  # but not for the optimizer's state
    fault = {"kind": "disk full", "step": 6, "bytes": room}
    ended = start(workplace, "run", fault=fault, resume_from_checkpoint=True)
    assert "run/checkpoint-4 is not whole: writing it did not come to its end" in ended.output
    assert "The run goes on from run/checkpoint-2" in ended.output
    assert "run/checkpoint-4 was there already and is written anew" in ended.output
    assert ended.returncode != 0
    assert "The checkpoint run/checkpoint-6 could not be written" in ended.output
    assert "Make room or give permission, then resume" in ended.output
    assert "The last whole checkpoint is run/checkpoint-4" in ended.output
    assert (out / "checkpoint-6" / "model.safetensors").exists()

    fault = {"kind": "signal", "number": signal.SIGTERM, "step": 7}
    ended = start(workplace, "run", fault=fault, resume_from_checkpoint=True)
    assert "The run goes on from run/checkpoint-4" in ended.output
    assert ended.returncode != 0
    assert ended.output.count("SIGTERM: the run stopped after step 7 of 10 and saved run/checkpoint-7.") == 1
    assert (out / "checkpoint-7").is_dir()

    fault = {"kind": "signal", "number": signal.SIGINT, "step": 9}
    ended = start(workplace, "run", fault=fault, resume_from_checkpoint=True)
    assert ended.returncode != 0
    assert "The run ended with Ctrl-C after step 9. The last whole checkpoint is run/checkpoint-8" in ended.output
    assert "SIGTERM" not in ended.output
    assert not (out / "checkpoint-9").exists()
    assert not (out / "checkpoint-10").exists()

    last = start(workplace, "run", resume_from_checkpoint=True)
    last.assert_backend("multi_gpu")
    assert_same_run(out, whole)


def test_torchrun_starts_again_in_place(workplace, whole):
    """As the page says: a process that dies, once, and "auto", which begins anew first and goes on then."""
    port = ["--standalone", "--max_restarts", "1", "--nproc_per_node", "2"]
    command = [sys.executable, "-m", "torch.distributed.run", *port, str(WORKER)]
    settings = environment({"kind": "kill", "rank": 1, "step": 7}) | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    restarted = run([*command, *arguments("restarted", resume_from_checkpoint="auto")], 300, workplace, settings)
    restarted.assert_backend("multi_gpu")
    assert "last whole checkpoint is restarted/checkpoint-6" in restarted.output
    assert_same_run(workplace / "restarted", whole)


def test_a_process_that_stops_without_an_end_is_given_up(workplace):
    ended = start(workplace, "stopped", fault={"kind": "stop", "rank": 1, "step": 3, "timeout": 10})
    assert ended.returncode != 0
    assert "The run ended with" in ended.output
    assert "last whole checkpoint is stopped/checkpoint-2" in ended.output


@pytest.mark.parametrize("backend", ["fsdp2", "zero3"])
def test_faults_in_a_sharded_checkpoint(backend, workplace):
    """A kill when all parts are there but the last file: it does not count. SIGTERM: it does. A part is lost.

    FSDP2 writes checkpoints in parts, and a whole model at the end; ZeRO-3 here leaves that in parts too.
    """
    out, whole = f"{backend} run", f"{backend} whole"
    parts = {"environment": {"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}} if backend == "fsdp2" else {}
    start(workplace, whole, backend, parts, max_steps=5).assert_backend(backend)

    ended = start(workplace, out, backend, {**parts, "kind": "kill after list", "rank": 0, "step": 4}, max_steps=5)
    assert ended.returncode != 0
    assert (workplace / out / "checkpoint-4" / "checkpoint_files.json").exists()

    fault = {**parts, "kind": "signal in save", "number": signal.SIGTERM, "step": 4}
    ended = start(workplace, out, backend, fault, max_steps=5, resume_from_checkpoint=True)
    assert f"{out}/checkpoint-4 is not whole: writing it did not come to its end" in ended.output
    assert f"The run goes on from {out}/checkpoint-2" in ended.output
    assert ended.returncode != 0
    assert f"SIGTERM: the run stopped after step 4 of 5 and saved {out}/checkpoint-4." in ended.output

    if backend == "zero3":
        parts = {"environment": {"ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "false"}}
    last = start(workplace, out, backend, parts, max_steps=5, resume_from_checkpoint=True)
    last.assert_backend(backend)
    if backend == "zero3":
        assert not list((workplace / out).glob("*.safetensors"))
        (said,) = re.findall(r"Put them together with: (.*?)\. The logs are in", last.output)
        subprocess.run([sys.executable, *shlex.split(said)[1:]], cwd=workplace, check=True, capture_output=True)
    assert_same_run(workplace / out, workplace / whole, last=5)

    checkpoint = workplace / out / "checkpoint-5"  # of the last step
    part = max((path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    part.write_bytes(part.read_bytes()[:-1])
    found, passed_over = last_whole_checkpoint(workplace / out)
    assert found == str(workplace / out / "checkpoint-4")
    assert f"its file {part.relative_to(checkpoint)} has" in passed_over[0]
