"""A selection on two processes, after a kill, and on one: the same rows, and no row scored twice."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from datasets import Dataset

from hf_gradkit.selection import FiFA
from launch import CONFIGS, _kill, free_port, launch
from pairs import make_pairs, save_reward_model, write_pairs

WORKER = Path(__file__).parent / "workers" / "select_cases.py"
ROWS = 60


@pytest.fixture
def case(tmp_path):
    """Write a case with these changes and return the worker's arguments."""
    rows = [row | {"uid": i} for i, row in enumerate(make_pairs(ROWS, "prompt"))]
    data = write_pairs(tmp_path / "pairs.jsonl", rows)

    def write(name: str, folder: str, seconds: float = 0.0, **options) -> list[str]:
        options = {"fraction": 0.3, "method": "greedy", "max_per_prompt": 1, **options}
        content = {"name": name, "folder": folder, "seconds": seconds, "data": str(data), "options": options}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return [str(tmp_path / f"{name}.json"), str(tmp_path)]

    return write


def run_alone(arguments: list[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    subprocess.run([sys.executable, str(WORKER), *arguments], env=environment, check=True, timeout=120)


def scored(folder: Path, name: str) -> list[int]:
    return sorted(int(line) for path in folder.glob(f"{name}.log*") for line in path.read_text().split())


def result(folder: Path, name: str, rank: int = 0) -> dict:
    return json.loads((folder / f"{name}.rank{rank}.json").read_text())


@pytest.mark.multiprocess
def test_one_process_two_and_two_that_were_killed(case, tmp_path):
    run_alone(case("alone", "first"))
    assert scored(tmp_path, "alone") == list(range(ROWS))

    launch(WORKER, case("two", "second")).assert_world("MULTI_CPU")
    assert scored(tmp_path, "two") == list(range(ROWS))
    assert len(list(tmp_path.glob("two.log*"))) == 2
    alone = result(tmp_path, "alone")
    assert len(alone["kept"]) == 18
    for rank in (0, 1):
        both = result(tmp_path, "two", rank)
        assert both["kept"] == alone["kept"]
        assert both["scores"] == alone["scores"]
        assert both["report"] == alone["report"]

    killed = case("killed", "third", seconds=0.6)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    command += [str(CONFIGS / "cpu" / "multi_gpu.yaml"), "--main_process_port", str(free_port()), str(WORKER)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    process = subprocess.Popen([*command, *killed], env=environment, stderr=subprocess.DEVNULL)
    end = time.time() + 90
    while len(scored(tmp_path, "killed")) < 16 and time.time() < end:
        time.sleep(0.02)
    _kill(process.pid)
    process.wait()
    before = scored(tmp_path, "killed")
    assert 16 <= len(before) < ROWS
    assert len(list(tmp_path.glob("killed.log*"))) == 2
    run_alone(case("after", "third"))
    # The batch at which a process was killed may have been computed and not yet written: at most one a process.
    after = scored(tmp_path, "after")
    assert set(before) | set(after) == set(range(ROWS))
    assert len(set(before) & set(after)) <= 8
    assert result(tmp_path, "after")["scores"] == alone["scores"]


@pytest.mark.multiprocess
def test_two_processes_with_models(tokenizer, tmp_path, case):
    """Reward model and embedder on two processes, through the command's own module."""
    save_reward_model(tokenizer, tmp_path / "reward")
    arguments = ["--dataset_name", str(tmp_path / "pairs.jsonl"), "--fraction", "0.2"]
    parts = {
        "margin": {"by": "reward_model", "model": "reward"},
        "embedder": {"by": "transformers", "model": "reward"},
        "quality": {"by": "classifier", "model": "reward"},
    }
    case("unused", "unused")  # writes the pairs
    arguments += ["--selector_kwargs", json.dumps(parts)]
    launched = launch("hf_gradkit.cli.select", [*arguments, "--output_dir", "two"], cwd=tmp_path)
    launched.assert_command("multi_gpu")
    assert launched.output.count("12 of 60 rows kept by fifa") == 1
    command = [sys.executable, "-m", "hf_gradkit.cli.select", *arguments, "--output_dir", "one"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=120)
    assert (tmp_path / "one" / "selected.jsonl").read_text() == (tmp_path / "two" / "selected.jsonl").read_text()


@pytest.mark.multiprocess
def test_the_trainer_filters_once_for_both_processes(policy, tmp_path):
    """Both train on the same pairs: as many steps as the selection has, and one process's selection."""
    rows = [row | {"reward_margin": (7 * i % 11) / 2} for i, row in enumerate(make_pairs(32, "prompt"))]
    dataset = Dataset.from_json(str(write_pairs(tmp_path / "pairs.jsonl", rows)), cache_dir=str(tmp_path / "cache"))
    options = {"fraction": 0.5, "k": 3, "method": "greedy", "cache_folder": str(tmp_path / "scores")}
    arguments = ["--model_name_or_path", policy, "--dataset_name", "pairs.jsonl", "--output_dir", "out"]
    arguments += ["--data_filter", "fifa", "--data_filter_kwargs", json.dumps(options), "--num_train_epochs", "1"]
    arguments += ["--per_device_train_batch_size", "4", "--bf16", "false", "--report_to", "none"]
    launched = launch("hf_gradkit.cli.dpo", arguments, cwd=tmp_path)
    launched.assert_backend("multi_gpu")
    assert json.loads((tmp_path / "out" / "trainer_state.json").read_text())["global_step"] == 2  # 16 pairs, 2 x 4
    scores = Dataset.from_parquet(str(tmp_path / "out/_data_filter/scores.parquet"), cache_dir=str(tmp_path / "cache"))
    alone = FiFA(**{**options, "cache_folder": tmp_path / "alone"}).select(dataset)
    assert scores["kept"] == alone.scores["kept"]
