"""Every command line of README, docs and recipes is read by the parser that would read it, up to where work begins."""

import argparse
import contextlib
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from documents import ROOT, Command, blocks, commands, pages, spans
from hf_gradkit.cli import audit, job, launch, main, recipes, score, select
from hf_gradkit.data.resources import find_recipe, resources
from hf_gradkit.selection import build_selector

PAGES = pages("docs", "recipes", "benchmarks")
JOBS = [name for name, command in main.COMMANDS.items() if command.job]
# The files that the documentation calls the reader's own, by job.
OWN = {"model_name_or_path": "model", "dataset_name": "data.jsonl", "output_dir": "out"}
OWN_FILE = {
    **dict.fromkeys(("sft", "dpo", "reward", "audit"), OWN),
    "score": {**OWN, "by": "loss"},
    "select": {"by": "random", "fraction": 0.5, "dataset_name": "data.jsonl", "output_dir": "out"},
}
SHORT = {"NAME": "random", "{...}": "{}"}  # what stands for something to fill in


class Parsed(BaseException):
    """A parser has taken all arguments; nothing that the command does has begun. No handler of a command takes it."""

    def __init__(self, values):
        self.values = values


class Started(BaseException):
    """A command would now become another process."""

    def __init__(self, command):
        self.command = command


@pytest.fixture(autouse=True)
def stop_after_parsing(monkeypatch, tmp_path):
    """Let the real parsers run, and stop there; four GPUs, a folder with the reader's methods, and nothing else."""

    def stopping(parse):
        def parse_and_stop(*arguments, **keywords):
            raise Parsed(parse(*arguments, **keywords))

        return parse_and_stop

    for module in (job, score, select, audit):
        monkeypatch.setattr(module, "parse_job", stopping(module.parse_job))
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stopping(argparse.ArgumentParser.parse_args))
    monkeypatch.setattr(launch, "visible_accelerators", lambda: 4)
    monkeypatch.setattr(os, "execv", lambda path, command: (_ for _ in ()).throw(Started(command)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    own = [block.text for page in PAGES for block in blocks(page, "python") if "\nclass " in block.text]
    (tmp_path / "my_module.py").write_text("\n".join(own))
    yield
    sys.modules.pop("my_module", None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_command_lines_are_what_their_programs_take(page, monkeypatch):
    folder, section = ROOT, 0
    for command in commands(page):
        if command.section != section:  # a new heading begins where the repository begins
            folder, section = ROOT, command.section
        if command.words[0] == "cd":
            folder = folder / command.words[1]
            assert folder.is_dir(), f"{command.name}: there is no such folder"
        else:
            check(command, folder, monkeypatch)


@pytest.mark.parametrize("name", resources("recipes"))
def test_command_lines_at_the_heads_of_recipes(name, monkeypatch):
    path = resources("recipes")[name]
    for line in recipes.head(path)[1]:
        check(Command(path, 1, tuple(shlex.split(line))), ROOT, monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_named_in_a_sentence_exist(page, capsys):
    for span in spans(page):
        names = [word for word in span.words[1:] if word != "|"] if "|" in span.words else [span.words[1]]
        assert {*names} <= {*main.COMMANDS, "...", "COMMAND", "--help"}, span.name
        if names[0] in main.COMMANDS:
            flags = {word for word in span.words if word.startswith("--")}
            kind = [word for word in span.words[2:3] if names[0] == "audit" and word in audit.KINDS]
            with contextlib.suppress(SystemExit, Parsed):
                assert main.main([names[0], *kind, "--help"]) == 0
            assert not flags - {*capsys.readouterr().out.replace("[", " ").replace(",", " ").split()}, span.name
        if names == ["recipes"] and len(span.words) > 2:
            find_recipe(span.words[2])


def check(command: Command, folder: Path, monkeypatch) -> None:
    """Run a command until its arguments are parsed; whatever is wrong with them fails the test with its name."""
    words = [SHORT.get(word, word) for word in command.words[1:]]
    whole = "..." not in words
    words = [*_filled(words)]
    try:
        values = _parsed(command.words[0], words, folder, monkeypatch)
        if command.words[0] == "gradkit":
            _check_values(values, command.words[1], whole, command.name)
    except (Exception, SystemExit) as error:
        raise AssertionError(f"{command.name}: {error}") from error


def _parsed(program: str, words: list[str], folder: Path, monkeypatch):
    """Return what a program's parser made of the arguments, or None where only the parser's consent is known."""
    try:
        CHECKS[program](words, folder, monkeypatch)
    except Parsed as parsed:
        return parsed.values
    assert program in ("make", "pip", "sbatch"), "no parser has read it"
    return None


def _filled(words: list[str]):
    """Leave out what `...` stands for, unless it is the value of an option."""
    for before, word in zip(["", *words], words, strict=False):
        if word != "...":
            yield word
        elif before.startswith("--"):
            yield "left_out"


def _gradkit(words: list[str], folder: Path, monkeypatch) -> None:
    name, *rest = words
    config = rest[rest.index("--config") + 1] if "--config" in rest else None
    if config is not None and "/" not in config and name in OWN_FILE:
        Path(config).write_text(yaml.safe_dump(OWN_FILE[name]))
    if "--dry_run" in rest and name in JOBS:  # it prints its command and ends: the arguments are checked without it
        rest.remove("--dry_run")
    monkeypatch.setenv("GRADKIT_TRACEBACK", "1")  # errors come out as they are
    try:
        main.main([name, *rest])
    except Started as started:
        module = started.command.index("-m", started.command.index("-m") + 1)
        arguments = started.command[module + 2 :]
        accelerate = started.command[started.command.index("accelerate.commands.launch") + 1 : module]
        with pytest.raises(Parsed):
            _accelerate(["launch", *accelerate, "-m", *started.command[module + 1 :]], folder, monkeypatch)
        sys.modules[started.command[module + 1]].main(arguments)


def _check_values(values, name: str, whole: bool, where: str) -> None:
    """Check what the jobs check once they have their arguments, and before they load anything."""
    if name == "recipes" and values.name is not None:
        find_recipe(values.name)
    if name not in JOBS or not whole:
        return
    given = {key: value for part in values for key, value in vars(part).items()}
    if name == "select":
        options = {"fraction": given["fraction"], "count": given["count"], **(given["selector_kwargs"] or {})}
        assert build_selector(given["by"], options), where
    if where.split()[1:3] != ["gradkit", "audit"]:
        assert given["dataset_name"] or given.get("datasets"), f"{where}: no data is named"
        assert given["output_dir"], f"{where}: no `output_dir`"
    if name not in ("select", "audit"):
        assert given["model_name_or_path"] or given.get("checkpoints"), f"{where}: no model is named"


def _accelerate(words: list[str], folder: Path, monkeypatch) -> None:
    from accelerate.commands.launch import launch_command_parser

    assert words[0] == "launch"
    try:
        launch_command_parser().parse_args(words[1:])
    except Parsed as parsed:
        config = parsed.values.config_file
        assert config in (None, "left_out") or (folder / config).is_file(), f"there is no {config}"
        raise


def _torchrun(words: list[str], folder: Path, monkeypatch) -> None:
    from torch.distributed.run import get_args_parser

    get_args_parser().parse_args([*words, "script.py"])


def _python(words: list[str], folder: Path, monkeypatch) -> None:
    script = folder / words[0]
    assert script.is_file(), f"there is no {script}"
    if "sys.argv" in script.read_text():  # it has no parser: what it is given are files of a study
        compile(script.read_text(), str(script), "exec")
        raise Parsed(None)
    stems = {path.stem for path in (ROOT / "benchmarks").rglob("*.py")}  # names of the tests' own modules among them
    kept, path = {name: sys.modules.pop(name) for name in stems & {*sys.modules}}, [*sys.path]
    monkeypatch.setattr(sys, "argv", [str(script), *words[1:]])
    sys.path.insert(0, str(script.parent))
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        for name in stems:
            sys.modules.pop(name, None)
        sys.modules.update(kept)
        sys.path[:] = path


def _make(words: list[str], folder: Path, monkeypatch) -> None:
    shown = subprocess.run(["make", "-n", *words], cwd=folder, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    assert "Nothing to be done" not in shown.stdout  # such as of `tests`, which is a folder


def _pip(words: list[str], folder: Path, monkeypatch) -> None:
    assert words[0] == "install"
    section = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n[")[0]
    extras = {*re.findall(r"^(\w+) = \[", section, re.MULTILINE)}
    for word in words[1:]:
        if not word.startswith("-"):
            asked = Requirement(word.replace(".[", "hf-gradkit[", 1) if word.startswith(".") else word)
            assert asked.name != "hf-gradkit" or asked.extras <= extras, f"extras are {extras}"


def _sbatch(words: list[str], folder: Path, monkeypatch) -> None:
    script = next(word for word in words if not word.startswith("-"))
    assert (folder / script).is_file()
    subprocess.run(["bash", "-n", str(folder / script)], check=True, capture_output=True, timeout=60)


CHECKS = {
    "accelerate": _accelerate,
    "gradkit": _gradkit,
    "make": _make,
    "pip": _pip,
    "python": _python,
    "sbatch": _sbatch,
    "torchrun": _torchrun,
}


@pytest.mark.parametrize(
    "line",
    [
        "gradkit sft --config tiny/linuper/sft",
        "gradkit sft --config recipes/tiny/linupper/sft.yaml --learning_rates 1",
        "gradkit sft --config recipes/tiny/linupper/sft.yaml --accelerate_config zero9",
        "gradkit sft --model_name_or_path model --output_dir out",
        "gradkit dpo --config my.yaml --loss_type rpoo",
        "gradkit score --config score.yaml --by el3n",
        "gradkit select --config select.yaml --by my_module:Fewest",
        "gradkit audit hold_outs --dataset_name data.jsonl",
        "gradkit recipes tiny/nothing",
        "gradkit report",
        "gradkit demo prefrence",
        "gradkit trian",
        "accelerate launch --config_file nowhere.yaml script.py",
        "python benchmarks/step_time.py --stepz 3",
        "python benchmarks/nothing.py",
        "make tests",
        "pip install 'hf-gradkit[plot]'",
        "sbatch recipes/nothing.slurm",
        "torchrun --standalones",
    ],
)
def test_a_wrong_command_is_noticed(line, monkeypatch):
    with pytest.raises(AssertionError):
        check(Command(ROOT / "README.md", 1, tuple(shlex.split(line))), ROOT, monkeypatch)
