"""Every recipe is parsed by the job's own parser, its command is checked, and the tiny one is run."""

import json
import shlex
import sys

import pytest
from trl import DatasetMixtureConfig, ModelConfig

from helpers import make_rows
from hf_gradkit import SFTConfig
from hf_gradkit.cli import launch, main, recipes
from hf_gradkit.cli.arguments import parse_job
from hf_gradkit.cli.job import ScriptArguments
from hf_gradkit.data.resources import resources
from hf_gradkit.data.tiny import tiny_llama
from launch import CONFIGS, run

RECIPES = resources("recipes")
TYPES = (ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig)


def commands(name: str) -> list[list[str]]:
    return [shlex.split(command) for command in recipes.head(RECIPES[name])[1]]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_what_the_parser_takes(name):
    script, args, model, mixture = parse_job("sft", TYPES, ["--config", str(RECIPES[name]), "--use_cpu", "true"])
    assert script.dataset_name or mixture.datasets
    assert model.model_name_or_path
    assert args.weighting == "linupper"
    assert args.output_dir.startswith("runs/")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_what_it_is_and_whether_it_was_measured(name):
    description, lines = recipes.head(RECIPES[name])
    assert description.endswith(".")
    assert lines
    text = RECIPES[name].read_text()
    assert "Not measured on a GPU yet." in text or "without a GPU" in text
    assert (RECIPES[name].parent / "README.md").exists()
    assert lines[-1] in (RECIPES[name].parent / "README.md").read_text()


@pytest.mark.parametrize("name", RECIPES)
def test_the_command_at_a_recipes_head_starts_it(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # the command works from anywhere: the recipe comes with the package
    monkeypatch.setattr(launch, "visible_accelerators", lambda: 4)
    for program, job, *arguments in commands(name):
        assert program == "gradkit"
        if job == "demo":
            continue
        assert main.main([job, *arguments, "--dry_run"]) == 0
        printed = shlex.split(capsys.readouterr().out)
        config = ["--config", str(RECIPES[name])]
        if "--accelerate_config" in arguments:
            path = CONFIGS / f"{arguments[arguments.index('--accelerate_config') + 1]}.yaml"
            started = ["accelerate.commands.launch", "--config_file", str(path), "--num_processes", "4"]
            assert printed == [sys.executable, "-m", *started, "-m", "hf_gradkit.cli.sft", *config]
        else:
            assert printed == [sys.executable, "-m", "hf_gradkit.cli.sft", *config]


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory, tokenizer):
    """What `gradkit demo --prepare_only` leaves behind, smaller."""
    folder = tmp_path_factory.mktemp("demo")
    data = folder / "gradkit_demo" / "data"
    data.mkdir(parents=True)
    rows = make_rows(48)
    for split, part in (("train", rows[:32]), ("test", rows[32:])):
        keys = ("prompt", "completion", "source")
        lines = [json.dumps({key: row[key] for key in keys}) + "\n" for row in part]
        (data / f"{split}.jsonl").write_text("".join(lines))
    tiny_llama(tokenizer, hidden_size=32).save_pretrained(folder / "gradkit_demo" / "model")
    tokenizer.save_pretrained(folder / "gradkit_demo" / "model")
    return folder


TINY = ["--config", "recipes/tiny/linupper/sft.yaml", "--disable_tqdm", "true"]


def check_run(folder, steps: int, processes: int) -> None:
    state = json.loads((folder / "trainer_state.json").read_text())
    assert state["global_step"] == steps
    assert any("group_weight/web" in entry for entry in state["log_history"])
    assert any("eval_loss" in entry for entry in state["log_history"])
    assert (folder / "model.safetensors").exists()
    assert list((folder / "example_log").glob("*.parquet"))
    assert json.loads((folder / "gradkit_run.json").read_text())["processes"] == processes


def test_the_tiny_recipe_runs_and_resumes(demo_folder, monkeypatch, capsys):
    monkeypatch.chdir(demo_folder)
    assert main.main(["sft", *TINY, "--max_steps", "2", "--output_dir", "runs/one"]) == 0
    assert "gradkit report runs/one" in capsys.readouterr().out
    check_run(demo_folder / "runs/one", 2, processes=1)
    again = ["--max_steps", "4", "--output_dir", "runs/one", "--resume_from_checkpoint", "true"]
    assert main.main(["sft", *TINY, *again]) == 0
    check_run(demo_folder / "runs/one", 4, processes=1)


@pytest.mark.multiprocess
def test_the_tiny_recipe_runs_as_two_processes(demo_folder):
    arguments = ["--max_steps", "2", "--output_dir", "runs/two", "--accelerate_config", "cpu/multi_gpu"]
    launched = run([sys.executable, "-m", "hf_gradkit.cli.main", "sft", *TINY, *arguments], cwd=demo_folder)
    assert launched.returncode == 0, launched.output[-6000:]
    assert launched.output.count("The model is in runs/two") == 1
    check_run(demo_folder / "runs/two", 2, processes=2)
