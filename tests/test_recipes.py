"""Every recipe is parsed by the job's own parser, its command is checked, and the tiny ones are run."""

import gzip
import json
import re
import shlex
import sys

import pyarrow.parquet as pq
import pytest

from helpers import make_rows
from hf_gradkit.cli import launch, main, recipes
from hf_gradkit.cli.arguments import parse_job
from hf_gradkit.data.resources import resources
from hf_gradkit.data.tiny import tiny_llama
from hf_gradkit.demo import material
from hf_gradkit.selection import build_selector
from job_types import TYPES
from launch import CONFIGS, run

RECIPES = resources("recipes")
FINE_TUNING = [name for name in RECIPES if "linupper" in name]
# Settings of the real-size recipes that are about this run or machine, and not about a method.
NO_ORIGIN = """
dataset_name eval_dataset_name dtype use_peft loss_type weighting by precompute_ref_log_probs activation_checkpointing
per_device_train_batch_size per_device_eval_batch_size logging_steps eval_strategy save_steps output_dir seed
""".split()  # noqa: SIM905
MADPO = [f"ultrafeedback/madpo{size}" for size in ("", "-0.6b", "-7b", "-lora", "-qlora")]
ULTRAFEEDBACK = [name for name in RECIPES if name.startswith("ultrafeedback/") and not name.endswith("/score")]


def parse(name: str):
    """Return a recipe's arguments as its job reads them."""
    job = RECIPES[name].stem
    return parse_job(job, TYPES[job], ["--config", str(RECIPES[name]), "--use_cpu", "true"])


def commands(name: str) -> list[list[str]]:
    return [shlex.split(command) for command in recipes.head(RECIPES[name])[1]]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_what_the_parser_takes(name):
    script, args, *others = parse(name)
    model = others[0] if others else args
    assert script.dataset_name or others[1].datasets
    if RECIPES[name].stem == "select":
        assert build_selector(args.by, {"fraction": args.fraction, "count": args.count, **args.selector_kwargs})
    else:
        assert model.model_name_or_path
    assert args.output_dir.startswith("runs/")
    if name in FINE_TUNING:
        assert args.weighting == "linupper"


@pytest.mark.parametrize("name", ULTRAFEEDBACK)
def test_a_recipe_of_a_papers_settings_says_where_each_comes_from(name):
    text = RECIPES[name].read_text()
    assert "Not run at this size by us." in text
    for line in text.splitlines():
        key, _, value = line.strip().partition(":")
        if line.startswith("#") or key in NO_ORIGIN or not value.partition("#")[0].strip():
            continue
        assert re.search("# .*(code|our default|ours|main paper)", line), line


def test_the_papers_settings():
    for name in ("rpo/dpo", "rpo-0.6b/dpo", "rpo-7b/dpo", "rpo-lora/dpo", "rpo-qlora/dpo"):
        name = f"ultrafeedback/{name}"
        _, args, model, _ = parse(name)
        assert (args.loss_type, args.loss_kwargs) == (["rpo"], {"rpo": {"eta": 0.005, "normalization": "sum"}})
        assert (args.beta, args.num_train_epochs) == (0.01, 1)
        assert model.use_peft == ("lora" in name)
        assert args.learning_rate == (5e-6 if model.use_peft else 5e-7)
        assert model.load_in_4bit == ("qlora" in name)
    for name in MADPO:
        _, args, _, _ = parse(f"{name}/dpo")
        assert args.weighting == "madpo"
        assert args.weighting_kwargs == {
            "c_max": 4.0, "c_min": 0.25, "steepness": 1.0, "tau": 6.907, "calibrate": True
        }  # fmt: skip
        _, _, model, _, _ = parse(f"{name}/reward")
        assert model.use_peft
        assert model.lora_r == 16
        assert model.model_name_or_path == parse(f"{name}/dpo")[2].model_name_or_path
    for name in ("ultrafeedback/beta-dpo/dpo", "ultrafeedback/beta-dpo-lora/dpo"):
        _, args, _, _ = parse(name)
        assert args.loss_kwargs == {"beta_dpo": {"alpha": 0.6, "decay": 0.9, "keep_ratio": 0.8}}
        assert (args.loss_type, args.beta) == (["beta_dpo"], 0.1)


@pytest.mark.parametrize("name", ["tiny/madpo", "hh-harmless/madpo", *MADPO])
def test_each_step_of_madpo_takes_what_the_one_before_leaves(name):
    reward, score, dpo = (parse(f"{name}/{job}") for job in ("reward", "score", "dpo"))
    assert score[1].model_name_or_path == reward[1].output_dir
    assert score[0].dataset_name == reward[0].dataset_name
    assert score[0].dataset_train_split == reward[0].dataset_train_split
    assert dpo[0].dataset_name == f"{score[1].output_dir}/scored.parquet"
    if f"{name}/sft" in RECIPES:
        policy = parse(f"{name}/sft")[1].output_dir
        assert reward[2].model_name_or_path == dpo[2].model_name_or_path == policy


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_what_it_is_and_whether_it_was_measured(name):
    description, lines = recipes.head(RECIPES[name])
    assert description.endswith(".")
    assert lines
    text = RECIPES[name].read_text()
    assert "Not measured on a GPU yet." in text or "without a GPU" in text
    assert (RECIPES[name].parent / "README.md").exists()
    assert lines[-1] in (RECIPES[name].parent / "README.md").read_text()


@pytest.mark.parametrize(
    "folder", sorted({path.parent for path in RECIPES.values()}), ids=lambda folder: "-".join(folder.parts[-2:])
)
def test_a_readme_says_what_it_takes_and_what_to_expect(folder):
    text = (folder / "README.md").read_text()
    assert re.match(r"# .+\n\n(    .+\n)+", text), "a title, and the commands at once"
    for heading in ("## Hardware and time", "## What to expect"):
        _, _, section = text.partition(f"\n{heading}\n")
        assert len(section.partition("\n## ")[0].split()) > 5, heading
    assert re.search("ot measured|minute|seconds", text.partition("## Hardware and time")[2])


@pytest.mark.parametrize("name", RECIPES)
def test_the_command_at_a_recipes_head_starts_it(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # the command works from anywhere: the recipe comes with the package
    monkeypatch.setattr(launch, "visible_accelerators", lambda: 4)
    for program, job, *arguments in commands(name):
        if program == "sbatch":  # the job file is run below
            assert job == f"recipes/{name.rpartition('/')[0]}/job.slurm"
            continue
        assert program == "gradkit"
        if job == "demo" or {"hold_out", "secrets"} & {*arguments}:
            continue
        assert main.main([job, *arguments, "--dry_run"]) == 0
        printed = shlex.split(capsys.readouterr().out)
        assert job == RECIPES[name].stem
        config = ["--config", str(RECIPES[name]), *arguments[: job == "audit"]]
        module = f"hf_gradkit.cli.{job}"
        if "--accelerate_config" in arguments:
            path = CONFIGS / f"{arguments[arguments.index('--accelerate_config') + 1]}.yaml"
            started = ["accelerate.commands.launch", "--config_file", str(path), "--num_processes", "4"]
            assert printed == [sys.executable, "-m", *started, "-m", module, *config]
        else:
            assert printed == [sys.executable, "-m", module, *config]


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
    info = json.loads((folder / "gradkit_run.json").read_text())
    assert (info["processes"], info["distributed_type"]) == (processes, "NO" if processes == 1 else "MULTI_CPU")


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


SHORT = ["--max_steps", "2", "--disable_tqdm", "true"]


def test_the_tiny_difficulty_recipe_runs(demo_folder, monkeypatch):
    monkeypatch.chdir(demo_folder)
    run_all("tiny/difficulty", {"sft": SHORT, "score": []})
    table = pq.read_table("runs/tiny-difficulty/scored/scored.parquet")
    assert {"loss", "el2n", "grand"} <= {*table.column_names}
    assert table.num_rows == 32


def test_the_tiny_audit_recipe_runs_up_to_its_report(demo_folder, monkeypatch, capsys):
    monkeypatch.chdir(demo_folder)
    prepare, *others = recipes.head(RECIPES["tiny/audit/sft"])[1]
    assert prepare == "gradkit demo --prepare_only"  # which demo_folder stands for
    for command in others:
        job, *arguments = shlex.split(command)[1:]
        fewer = {"secrets": ["--rows", "60"], "sft": ["--num_train_epochs", "2", "--disable_tqdm", "true"]}
        kind = arguments[0] if job == "audit" else job
        assert main.main([job, *arguments, *fewer.get(kind, [])]) == 0, command
    run_all("tiny/audit", {"audit membership": []})
    assert main.main(["report", "runs/tiny-audit"]) == 0
    assert "Report: " in capsys.readouterr().out
    figures = json.loads((demo_folder / "runs/tiny-audit/_audit/membership.json").read_text())
    assert len(figures["epochs"]) == 2
    assert "rivacy audit" in (demo_folder / "runs/tiny-audit/report.html").read_text()


def run_all(recipe: str, jobs: dict[str, list[str]]) -> None:
    """Run the steps of a recipe, with further arguments for each, and check what they leave."""
    for job, arguments in jobs.items():
        file = f"recipes/{recipe}/{job.split()[0]}.yaml"
        assert main.main([*job.split(), "--config", file, *arguments]) == 0, job


def check_madpo(scored, folder) -> None:
    assert {"reward_chosen", "reward_rejected", "reward_margin"} <= set(pq.read_table(scored).column_names)
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    assert any("weights/mean" in entry for entry in history)
    assert any("eval_rewards/accuracies" in entry for entry in history)
    info = json.loads((folder / "gradkit_run.json").read_text())
    assert info["weighting"] == "madpo"
    assert info["margin_temperature"] > 0
    assert (folder / "model.safetensors").exists()


def test_the_synthetic_recipe_runs_from_its_first_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for size, value in {"BASE_ROWS": 256, "PAIRS": 96, "TEST_PAIRS": 8}.items():
        monkeypatch.setattr(material, size, value)
    prepare, _ = recipes.head(RECIPES["tiny/madpo/sft"])[1]
    assert main.main(shlex.split(prepare)[1:]) == 0
    logs = ["--logging_steps", "1"]
    run_all("tiny/madpo", {"sft": SHORT, "reward": [*SHORT, "--max_steps", "12"], "score": [], "dpo": [*SHORT, *logs]})
    runs = tmp_path / "runs" / "tiny-madpo"
    check_madpo(runs / "scored" / "scored.parquet", runs / "dpo")
    assert (runs / "reward" / "folds.json").exists()
    run_all("tiny/fifa", {"select": [], "dpo": [*SHORT, *logs]})
    selected = tmp_path / "runs" / "tiny-fifa" / "selected"
    assert len((selected / "selected.jsonl").read_text().splitlines()) == 24
    assert (selected / "report.html").exists()
    assert (tmp_path / "runs" / "tiny-fifa" / "dpo" / "model.safetensors").exists()


def test_the_hh_harmless_recipe_runs_from_its_first_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [
        {
            side: f"\n\nHuman: {row['prompt']}{i}\n\nAssistant: {answer}"
            for side, answer in zip(("chosen", "rejected"), answers, strict=True)
        }
        for i, row in enumerate(make_rows(64))
        for answers in [("yes and kind", row["completion"])]
    ]
    with gzip.open("hh_harmless.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    prepare, _ = recipes.head(RECIPES["hh-harmless/madpo/sft"])[1]
    assert main.main(shlex.split(prepare)[1:]) == 0
    train, test = ["--dataset_train_split", "train[:48]"], ["--dataset_test_split", "train[48:]"]
    run_all(
        "hh-harmless/madpo",
        {
            "sft": [*SHORT, *train, *test],
            "reward": [*SHORT, *train, *test],
            "score": train,
            "dpo": [*SHORT, *test, "--logging_steps", "1", "--weighting_kwargs", '{"calibrate": false}'],
        },
    )
    runs = tmp_path / "runs" / "hh-harmless"
    check_madpo(runs / "scored" / "scored.parquet", runs / "dpo")
