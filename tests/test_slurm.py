"""The SLURM recipe: its job file starts what it says on each machine, and two launchers become one process group."""

import json
import os
import shlex
import stat
import subprocess
import sys

import pytest

from helpers import make_rows
from hf_gradkit.data.resources import resource_folder
from hf_gradkit.data.tiny import tiny_llama
from launch import CONFIGS, free_port

JOB = resource_folder("recipes") / "slurm" / "two-nodes" / "job.slurm"
# SLURM's two commands as the job file uses them: names of machines, and the command once on each of them.
SCONTROL = '[ "$*" = "show hostnames node[7-8]" ] && printf "node7\\nnode8\\n"'
SRUN = '[ "$1" = --kill-on-bad-exit=1 ] && shift; for rank in 0 1; do SLURM_NODEID=$rank "$@" || exit 1; done'
GRADKIT = f'exec {shlex.quote(sys.executable)} -m hf_gradkit.cli.main "$@" --dry_run'


def run_job(folder) -> list[list[str]]:
    """Run the job file in a folder, and return the command that each machine would start."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN), ("gradkit", GRADKIT)):
        (programs / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (programs / name).chmod(stat.S_IRWXU)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "node[7-8]"}
    shown = subprocess.run(
        ["bash", str(JOB)], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert shown.returncode == 0, shown.stdout + shown.stderr
    return [shlex.split(line) for line in shown.stdout.splitlines()]


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def test_each_machine_starts_its_part(tmp_path):
    first, second = run_job(tmp_path)
    for rank, command in enumerate((first, second)):
        assert option(command, "--config_file") == str(CONFIGS / "two_nodes.yaml")
        assert option(command, "--main_process_ip") == "node7"
        assert option(command, "--machine_rank") == str(rank)
        assert option(command, "--config").endswith("slurm/two-nodes/sft.yaml")
        assert option(command, "--resume_from_checkpoint") == "auto"  # submitted again, it goes on
    assert len(first) == len(second)


@pytest.mark.multiprocess
def test_two_launchers_train_together(tmp_path, tokenizer):
    """The command of the job file with the settings of its recipe, on one machine that plays both."""
    tiny_llama(tokenizer, hidden_size=32).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [json.dumps({key: row[key] for key in ("messages", "source")}) + "\n" for row in make_rows(32)]
    (tmp_path / "train.jsonl").write_text("".join(rows))
    settings = ["--model_name_or_path", "model", "--dataset_name", "train.jsonl", "--max_steps", "2"]
    settings += ["--use_cpu", "true", "--bf16", "false", "--monitor_steps", "1", "--logging_steps", "1"]
    machines = ["--accelerate_config", "cpu/multi_gpu", "--num_machines", "2", "--num_processes", "2"]
    machines += ["--main_process_ip", "127.0.0.1", "--main_process_port", str(free_port())]
    command = [sys.executable, "-m", "hf_gradkit.cli.main", "sft", "--config", "slurm/two-nodes/sft"]
    started = [
        subprocess.Popen(
            [*command, *settings, *machines, "--machine_rank", str(rank)],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n\n".join(text[-4000:] for text in outputs)
    info = json.loads((tmp_path / "runs/slurm-two-nodes/gradkit_run.json").read_text())
    assert (info["processes"], info["distributed_type"]) == (2, "MULTI_CPU")
    lines = (tmp_path / "runs/slurm-two-nodes/worker_consistency.jsonl").read_text().splitlines()
    assert len(json.loads(lines[0])["losses"]) == 2
