"""Offloading an optimizer makes DeepSpeed compile one: a machine that cannot is told so before anything trains."""

import sys
from types import SimpleNamespace

import pytest
import yaml
from accelerate.utils import DistributedType

from helpers import make_rows
from hf_gradkit.trainers.offload import check_offload, compiled_optimizer
from launch import CONFIGS, launch
from pair_helpers import save_policy
from pairs import write_pairs

OFFLOADED = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
ADAM = {"type": "AdamW", "params": {"lr": 1e-3}}
REMEDY = r"ninja \(pip install ninja\), or set `offload_optimizer_device: none`"


def accelerator(config, kind=DistributedType.DEEPSPEED):
    """Stand in for a trainer's accelerator, as far as the check looks at it."""
    plugin = SimpleNamespace(deepspeed_config=config)
    return SimpleNamespace(distributed_type=kind, state=SimpleNamespace(deepspeed_plugin=plugin))


@pytest.fixture
def found(monkeypatch, tmp_path):
    """Programs that this machine has, of which the test takes some away, and an empty folder of what was compiled."""
    programs = {"ninja", "c++"}
    monkeypatch.setattr("shutil.which", lambda name: name if name in programs else None)
    monkeypatch.setattr("deepspeed.git_version_info.installed_ops", {})
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    return programs


def test_a_machine_that_compiles_goes_on(found):
    check_offload(accelerator(OFFLOADED))


@pytest.mark.parametrize("gone", ["ninja", "c++"])
@pytest.mark.parametrize("config", [OFFLOADED, {**OFFLOADED, "optimizer": ADAM}])
def test_what_is_missing_is_named(gone, config, found):
    found.remove(gone)
    lacks = {"ninja": "lacks ninja", "c++": r"lacks a C\+\+ compiler \(c\+\+; the environment variable CXX"}[gone]
    with pytest.raises(ValueError, match=rf"device 'cpu'.*cpu_adam, and this machine {lacks}.*{REMEDY}"):
        check_offload(accelerator(config))


def test_both_are_missing(found):
    found.clear()
    with pytest.raises(ValueError, match=r"lacks ninja and a C\+\+ compiler"):
        check_offload(accelerator(OFFLOADED))


def test_the_environment_names_the_compiler(found, monkeypatch):
    monkeypatch.setenv("CXX", "my-c++ -m64")
    with pytest.raises(ValueError, match=r"a C\+\+ compiler \(my-c\+\+ -m64;"):
        check_offload(accelerator(OFFLOADED))
    found.add("my-c++")
    check_offload(accelerator(OFFLOADED))


def test_what_was_compiled_before_needs_ninja_alone(found, tmp_path, monkeypatch):
    (tmp_path / "cpu_adam").mkdir()
    (tmp_path / "cpu_adam" / "cpu_adam.so").touch()
    found.remove("c++")
    check_offload(accelerator(OFFLOADED))
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    monkeypatch.setattr("torch.utils.cpp_extension.get_default_build_root", lambda: str(tmp_path))
    with pytest.raises(ValueError, match="compiler"):
        check_offload(accelerator(OFFLOADED))
    (tmp_path / "cpu_adam").rename(tmp_path / "moved")
    folder = tmp_path / f"py{sys.version_info.major}{sys.version_info.minor}_cpu"
    folder.mkdir()
    (tmp_path / "moved").rename(folder / "cpu_adam")
    check_offload(accelerator(OFFLOADED))
    found.remove("ninja")
    with pytest.raises(ValueError, match="lacks ninja"):
        check_offload(accelerator(OFFLOADED))


def test_what_deepspeed_was_installed_with(found, monkeypatch):
    found.clear()
    monkeypatch.setattr("deepspeed.git_version_info.installed_ops", {"cpu_adam": True})
    check_offload(accelerator(OFFLOADED))


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"zero_optimization": {"stage": 3}},
        {"zero_optimization": {"stage": 3, "offload_optimizer": None}},
        {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "none"}}},
        {**OFFLOADED, "zero_force_ds_cpu_optimizer": False},
        {**OFFLOADED, "optimizer": {"type": "Adam", "params": {"torch_adam": True}}},
    ],
)
def test_what_compiles_nothing(config, found):
    found.clear()
    check_offload(accelerator(config))
    check_offload(accelerator(OFFLOADED, DistributedType.FSDP))


def test_what_is_compiled():
    assert compiled_optimizer({"optimizer": {"type": "Lion"}}) == "cpu_lion"
    assert compiled_optimizer({"optimizer": {"type": "SGD", "params": {}}}) is None
    assert compiled_optimizer({}) == "cpu_adam"


@pytest.mark.multiprocess
def test_two_processes_without_a_compiler(tokenizer, tmp_path):
    """They end before the first step with the message, once, and no traceback."""
    config = yaml.safe_load((CONFIGS / "cpu" / "zero2.yaml").read_text())
    config["deepspeed_config"]["offload_optimizer_device"] = "cpu"
    (tmp_path / "compiled.yaml").write_text(yaml.safe_dump(config))
    policy = save_policy(tmp_path / "policy", tokenizer)
    rows = write_pairs(tmp_path / "rows.jsonl", [{"text": row["text"]} for row in make_rows(8)])
    (tmp_path / "nothing").mkdir()
    arguments = ["--model_name_or_path", policy, "--dataset_name", str(rows), "--max_steps", "1"]
    arguments += ["--output_dir", "out", "--use_cpu", "true", "--bf16", "false", "--report_to", "none"]
    launched = launch(
        "hf_gradkit.cli.sft",
        arguments,
        config=str(tmp_path / "compiled"),
        cwd=tmp_path,
        env={"PATH": str(tmp_path / "nothing"), "TORCH_EXTENSIONS_DIR": str(tmp_path / "none"), "CXX": "c++"},
    )
    assert launched.returncode == 1
    assert launched.output.count("gradkit: The DeepSpeed configuration offloads the optimizer") == 1
    assert "lacks ninja and a C++ compiler (c++;" in launched.output
    assert "Traceback" not in launched.output.split("gradkit: ")[0]
    assert not (tmp_path / "out" / "gradkit_run.json").exists()
