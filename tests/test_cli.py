"""The command line: what is imported when, what is refused and how, and what the launcher starts."""

import json
import os
import subprocess
import sys
import warnings

import pytest
import yaml

from helpers import make_rows
from hf_gradkit.cli import dpo, errors, launch, main, reward, sft
from hf_gradkit.cli.job import find_checkpoint
from hf_gradkit.data.tiny import tiny_llama
from launch import run

GRADKIT = [sys.executable, "-m", "hf_gradkit.cli.main"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, tokenizer):
    """A folder with a model and data whose columns need a mapping."""
    folder = tmp_path_factory.mktemp("cli")
    tiny_llama(tokenizer, hidden_size=32).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [{"question": row["prompt"], "answer": row["completion"], "source": row["source"]} for row in make_rows(16)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def config(workplace, monkeypatch):
    """Write a YAML with these changes to a working one, and return its arguments."""
    monkeypatch.chdir(workplace)
    working = {
        "model_name_or_path": "model",
        "dataset_name": "rows.jsonl",
        "column_mapping": {"question": "prompt", "answer": "completion"},
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "bf16": False,
        "activation_checkpointing": False,
        "save_strategy": False,  # what YAML makes of `no`
        "logging_steps": 1,
        "learning_rate": "1e-3",  # what YAML makes of 1e-3
        "disable_tqdm": True,
        "max_length": None,
        "output_dir": "out",
    }

    def write(**changes):
        values = {key: value for key, value in {**working, **changes}.items() if value != "left out"}
        (workplace / "sft.yaml").write_text(yaml.safe_dump(values))
        return ["--config", "sft.yaml"]

    return write


def message(capsys) -> str:
    return capsys.readouterr().err


# ---- the console script ---------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy():
    """Which is what keeps it quick; `benchmarks/startup.py` times it."""
    code = (
        "import sys; from hf_gradkit.cli.main import main; main(['--help']); "
        "print(sorted({'torch', 'transformers', 'trl', 'datasets', 'yaml'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(name in output for name in main.COMMANDS)
    assert output.endswith("[]\n")


def test_unknown_command(capsys):
    assert main.main(["sftt"]) == 2
    assert "There is no command 'sftt'. Did you mean 'sft'?" in message(capsys)


def test_env_names_versions_and_how_to_get_an_extra(capsys):
    assert main.main(["env"]) == 0
    output = capsys.readouterr().out
    for name in ("python", "hf-gradkit", "torch", "transformers", "trl", "peft", "deepspeed", "bitsandbytes"):
        assert name in output
    for extra in ("deepspeed", "quantization", "plots"):
        (line,) = [line for line in output.splitlines() if line.startswith(f"extra {extra} ")]
        assert line.endswith("installed") or f'pip install "hf-gradkit[{extra}]"' in line


def test_recipes_lists_prints_and_copies(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main.main(["recipes"]) == 0
    assert "gradkit sft --config recipes/tiny/linupper/sft.yaml" in capsys.readouterr().out
    assert main.main(["recipes", "tiny/linupper/sft"]) == 0
    text = capsys.readouterr().out
    assert main.main(["recipes", "tiny/linupper/sft", "--copy", "mine.yaml"]) == 0
    assert (tmp_path / "mine.yaml").read_text() == text
    assert main.main(["recipes", "tiny/linupper/sft", "--copy", "mine.yaml"]) == 2
    assert "not overwritten" in message(capsys)
    assert main.main(["recipes", "tiny/linuper/sft"]) == 2
    assert "Did you mean 'tiny/linupper/sft'?" in message(capsys)


def test_help_of_the_job_names_our_options_and_the_launchers(capsys):
    with pytest.raises(SystemExit) as ended:
        main.main(["sft", "--help"])
    assert ended.value.code == 0
    output = capsys.readouterr().out
    for name in ("--weighting_kwargs", "--column_mapping", "--learning_rate", "--accelerate_config", "--dry_run"):
        assert name in output
    assert output.startswith("usage: gradkit sft [--config FILE|RECIPE] [options]\n")  # not 100 lines of names
    ours, theirs = output.index("options of hf_gradkit:"), output.index("options of TRL and transformers:")
    assert ours < output.index("--weighting_kwargs") < theirs < output.index("--learning_rate")
    assert ours < output.index("--column_mapping") < theirs < output.index("--max_length")
    end = output[output.index("a file of options:") :].splitlines()
    assert "  --dry_run" in end  # the lines are kept
    assert max(map(len, end)) <= 80


def test_help_of_a_job_without_options_of_trl_has_one_group(capsys):
    with pytest.raises(SystemExit):
        main.main(["audit", "secrets", "--help"])
    output = capsys.readouterr().out
    assert "\noptions:\n" in output
    assert "TRL" not in output


# ---- a job in this process ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "told"), [({}, False), ({"gradient_checkpointing": True}, True)])
def test_who_did_not_set_a_deprecated_option_is_not_told_of_it(config, changes, told):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert sft.main(config(activation_checkpointing="left out", **changes)) == 0
    assert any("gradient_checkpointing` is deprecated" in str(one.message) for one in seen) is told


@pytest.mark.parametrize("streaming", [False, True])
def test_a_job_from_yaml_and_flags(config, workplace, streaming):
    flags = ["--weighting", "linupper", "--weighting_kwargs", '{"temperature": 0.4}', "--group_column", "source"]
    out = f"out-{streaming}"
    assert sft.main([*config(dataset_streaming=streaming), *flags, "--output_dir", out, "--seed=1"]) == 0
    info = json.loads((workplace / out / "gradkit_run.json").read_text())
    assert info["settings"]["weighting_kwargs"] == {"temperature": 0.4}
    assert info["settings"]["seed"] == 1
    assert info["conversational"] is (None if streaming else False)
    assert info["settings"]["learning_rate"] == 1e-3
    state = json.loads((workplace / out / "trainer_state.json").read_text())
    assert "group_loss/web" in state["log_history"][0]


def test_a_mixture_with_lora_and_evaluation(config, workplace):
    changes = {
        "dataset_name": "left out",
        "datasets": [{"path": "rows.jsonl"}, {"path": "rows.jsonl", "columns": ["question", "answer", "source"]}],
        "test_split_size": 0.25,
        "eval_strategy": "epoch",
        "use_peft": True,
        "lora_target_modules": "all-linear",
    }
    assert sft.main([*config(**changes), "--output_dir", "lora"]) == 0
    assert (workplace / "lora" / "adapter_model.safetensors").exists()
    state = json.loads((workplace / "lora" / "trainer_state.json").read_text())
    assert any("eval_loss" in entry for entry in state["log_history"])


def test_two_processes_by_accelerates_own_launcher_say_an_error_once(config, workplace):
    arguments = config(weighting="linuper")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    path = launch.find_accelerate_config("cpu/multi_gpu")
    launched = run([*command, str(path), "-m", "hf_gradkit.cli.sft", *arguments], cwd=workplace)
    assert launched.returncode != 0
    assert launched.output.count("There is no weighting method 'linuper'. Did you mean 'linupper'?") == 1


# ---- what is refused, in a sentence -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "flags", "expected"),
    [
        (
            {"weightin": "linupper"},
            [],
            "'weightin', which is not an option of gradkit sft. Did you mean 'weighting'?",
        ),
        ({}, ["--weightin", "linupper"], "--weightin is not an option of gradkit sft. Did you mean '--weighting'?"),
        ({}, ["--learning-rat=1"], "--learning-rat is not an option of gradkit sft. Did you mean '--learning_rate'?"),
        ({}, ["linupper"], "The argument 'linupper' belongs to no option."),
        ({"max_steps": 2.5}, [], "argument --max_steps/--max-steps: invalid int value: '2.5'"),
        ({"max_steps": True}, [], "argument --max_steps/--max-steps: invalid int value: 'True'"),
        ({"learning_rate": "fast"}, [], "invalid"),
        ({}, ["--learning_rate", "fast"], "invalid"),
        ({"weighting": "linuper"}, [], "There is no weighting method 'linuper'. Did you mean 'linupper'?"),
        ({"model_name_or_path": None}, [], "`model_name_or_path` is not set."),
        ({"model_name_or_path": "runs/sft/model"}, [], "'runs/sft/model', but there is no such folder (looked in /"),
        (
            {"model_name_or_path": "."},
            [],
            "neither config.json nor adapter_config.json is in it. Below it there is '",
        ),
        ({"model_name_or_path": "runs/gone"}, [], "'runs/gone', which is neither a folder here (looked in /"),
        ({"dataset_name": None}, [], "No data is named."),
        (
            {"column_mapping": "left out"},
            [],
            "the training data does not have them. Its columns: 'question', 'answer', 'source'. Rename columns with "
            """`column_mapping`, such as --column_mapping '{"question": "prompt", "answer": "completion"}'.""",
        ),
        (
            {"column_mapping": {"question": "chosen", "answer": "rejected"}},
            [],
            "It has preference pairs, for which there are gradkit dpo and gradkit reward.",
        ),
        ({"dataset_name": "gone.jsonl"}, [], "The data file 'gone.jsonl' does not exist"),
        ({"dataset_train_split": "trian"}, [], "has no split 'trian'. Did you mean 'train'? Its splits: 'train'."),
        ({"eval_strategy": "epoch"}, [], "`eval_strategy` is set, but there is nothing to evaluate on"),
        ({"eval_dataset_name": "rows.jsonl"}, [], "but the run never evaluates"),
        ({"datasets": [{"path": "rows.jsonl"}]}, [], "Both `datasets` and `dataset_name` ('rows.jsonl') are set."),
        (
            {"datasets": [{"pth": "rows.jsonl"}]},
            [],
            "Entry 0 of `datasets` in sft.yaml must be a mapping with",
        ),
        (
            {"datasets": [{"path": "a", "spilt": "x"}]},
            [],
            "sets 'spilt', which a data set does not have.",
        ),
        (
            {"column_mapping": {"quest": "prompt"}},
            [],
            "training data has no such column. Did you mean 'question'?",
        ),
        ({"column_mapping": "{question}"}, [], "`column_mapping` must be a JSON object, but '{question}' is not JSON"),
        ({"column_mapping": ["question"]}, [], "`column_mapping` must map existing names to new names"),
        (
            {"resume_from_checkpoint": True},
            ["--output_dir", "new"],
            "`output_dir` 'new' holds no checkpoint to go on from.",
        ),
        ({"resume_from_checkpoint": "gone"}, [], "`resume_from_checkpoint` is 'gone', but there is no such folder."),
        ({"env": ["A"]}, [], "`env` in sft.yaml must be a mapping"),
        ({}, ["--config", "sft.yaml"], "--config was given 2 times"),
        ({}, ["--num_processes", "2"], "--num_processes is for the launcher"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(config, capsys, changes, flags, expected):
    assert sft.main([*config(**changes), *flags]) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("job", [dpo, reward])
def test_data_of_another_kind(config, capsys, job):
    assert job.main(config()) == 2
    said = message(capsys)
    assert "needs the columns 'chosen' and 'rejected', and 'prompt' unless both begin with it" in said
    assert "It has prompts with one completion each, for which there is gradkit sft." in said


@pytest.mark.parametrize("text", ["- a", "a: [", "just text"])
def test_a_file_that_is_no_mapping(workplace, monkeypatch, capsys, text):
    monkeypatch.chdir(workplace)
    (workplace / "bad.yaml").write_text(text)
    assert main.main(["sft", "--config", "bad.yaml"]) == 2
    assert "bad.yaml" in message(capsys)
    assert main.main(["sft", "--config", "recipes/tiny/linuper/sft.yaml"]) == 2
    assert "there is no such file" in message(capsys)


def test_only_the_first_process_of_a_machine_speaks_before_training(monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "9")
    assert errors.report(ValueError("no such file")) == 2
    assert message(capsys) == ""
    assert errors.report(ValueError("bad loss"), every_rank=True) == 2
    assert "[rank 9] bad loss" in message(capsys)


def test_the_traceback_is_there_when_asked_for(monkeypatch):
    monkeypatch.setenv("GRADKIT_TRACEBACK", "1")
    with pytest.raises(ValueError, match="no command"):
        main.main(["nothing"])


def test_yaml_sets_environment_variables(config, monkeypatch, capsys):
    monkeypatch.setenv("GRADKIT_TEST_VARIABLE", "0")
    assert main.main(["sft", *config(env={"GRADKIT_TEST_VARIABLE": 1}), "--dry_run"]) == 0
    assert os.environ["GRADKIT_TEST_VARIABLE"] == "1"


def test_checkpoints(tmp_path):
    for step in (9, 10, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (9, 10):  # the run was ended while it wrote the last one
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    for nothing in (None, False, "false"):
        assert find_checkpoint(nothing, str(tmp_path)) is None
    for last in (True, "true"):
        assert find_checkpoint(last, str(tmp_path)) == str(tmp_path / "checkpoint-10")
    assert find_checkpoint(str(tmp_path / "checkpoint-9"), "elsewhere") == str(tmp_path / "checkpoint-9")
    with pytest.raises(ValueError, match=r"checkpoint-11 is not whole: .*The latest whole one is .*checkpoint-10"):
        find_checkpoint(str(tmp_path / "checkpoint-11"), "elsewhere")
