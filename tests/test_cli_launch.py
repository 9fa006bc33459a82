"""`gradkit sft --accelerate_config ...`: what the launcher starts, and what it refuses."""

import os
import shlex
import sys

import pytest
import yaml

from hf_gradkit.cli import launch, main


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Write a YAML with these launcher's options, and return its arguments; nothing of the job is read here."""
    monkeypatch.chdir(tmp_path)

    def write(**options):
        (tmp_path / "sft.yaml").write_text(yaml.safe_dump({"model_name_or_path": "model", **options}))
        return ["--config", "sft.yaml"]

    return write


def dry_run(capsys, *arguments: str) -> list[str]:
    assert main.main(["sft", *arguments, "--dry_run"]) == 0
    return shlex.split(capsys.readouterr().out)


def test_without_a_configuration_the_job_runs_here(config, capsys):
    printed = dry_run(capsys, *config(), "--run_name", "two words")
    assert printed == [sys.executable, "-m", "hf_gradkit.cli.sft", "--config", "sft.yaml", "--run_name", "two words"]


def test_what_is_printed_is_what_is_started(config, capsys, monkeypatch):
    arguments = [*config(), "--accelerate_config", "cpu/multi_gpu", "--main_process_port", "0", "--same_network"]
    started = []
    monkeypatch.setattr(os, "execv", lambda path, command: started.append((path, command)))
    printed = dry_run(capsys, *arguments)
    assert started == []
    main.main(["sft", *arguments])
    assert started == [(sys.executable, printed)]
    assert printed[3:] == [
        *["--config_file", str(launch.find_accelerate_config("cpu/multi_gpu"))],
        *["--main_process_port", "0", "--same_network", "-m", "hf_gradkit.cli.sft", "--config", "sft.yaml"],
    ]


def test_the_configuration_may_stand_in_the_yaml_and_the_command_line_wins(config, capsys):
    in_yaml = config(accelerate_config="cpu/multi_gpu", num_processes=3)
    assert "--num_processes 3 " in shlex.join(dry_run(capsys, *in_yaml))
    printed = shlex.join(dry_run(capsys, *in_yaml, "--num_processes", "4"))
    assert "cpu/multi_gpu.yaml --num_processes 4 " in printed


@pytest.mark.parametrize(
    ("arguments", "processes"),
    [
        (["--accelerate_config", "multi_gpu"], "4"),
        (["--accelerate_config", "two_nodes"], "8"),
        (["--accelerate_config", "multi_gpu", "--gpu_ids", "0,3"], "2"),
        (["--accelerate_config", "zero3", "--num_processes", "2"], "2"),
        (["--num_machines", "3"], "12"),
        (["--accelerate_config", "single_gpu"], None),
        (["--accelerate_config", "cpu/multi_gpu"], None),
    ],
)
def test_one_process_for_each_visible_gpu(capsys, monkeypatch, arguments, processes):
    monkeypatch.setattr(launch, "visible_accelerators", lambda: 4)
    printed = dry_run(capsys, *arguments)
    if processes is None:
        assert "--num_processes" not in printed
    else:
        assert printed[printed.index("--num_processes") + 1] == processes


def test_launches_that_cannot_work(config, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(launch, "visible_accelerators", lambda: 0)
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None)
    mine = tmp_path / "mine.yaml"
    mine.write_text("distributed_type: MULTI_CPU\nnum_processes: 2\nuse_cpu: true\n")
    nothing = tmp_path / "nothing.yaml"
    nothing.write_text("a: 1\n")
    for arguments, expected in (
        (["--accelerate_config", "zero3"], 'pip install "hf-gradkit[deepspeed]"'),
        (["--accelerate_config", "multi_gpu"], "none is visible on this machine"),
        (["--accelerate_config", "mutli_gpu"], "Did you mean 'multi_gpu'?"),
        (["--accelerate_config", "single_gpu", "--num_processes", "2"], "`distributed_type: NO`"),
        (["--accelerate_config", str(mine)], "`distributed_type: MULTI_CPU`"),
        (["--accelerate_config", str(nothing)], "is not a configuration of accelerate"),
        (["--accelerate_config"], "expected one argument"),
    ):
        assert main.main(["sft", *config(), *arguments]) == 2
        assert expected in capsys.readouterr().err
