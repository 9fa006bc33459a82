"""The wheel works after `pip install`, in an environment and a folder that have nothing to do with the checkout."""

import ast
import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from hf_gradkit.data.resources import resources

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def clean(wheel, tmp_path_factory):
    """A virtual environment with the wheel installed; the other libraries are those of this environment.

    They are on its path by name. This environment's own .pth files, the checkout's among them, are not read there.
    """
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder / "env", with_pip=False, symlinks=True)
    python = folder / "env" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True, timeout=120)
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    (folder / "work").mkdir()
    return folder


def run(clean: Path, program: str, *arguments: str) -> str:
    """Run a program of the clean environment in its working folder, and return what it printed."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    ran = subprocess.run(
        [str(clean / "env" / "bin" / program), *arguments],
        cwd=clean / "work",
        env={**kept, "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    return ran.stdout


def test_recipes_and_launch_configurations_are_in_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for folder in ("recipes", "accelerate_configs"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".yaml", ".md", ".slurm"):
                assert f"hf_gradkit/{folder}/{path.relative_to(ROOT / folder)}" in names
    for path in (ROOT / "hf_gradkit").rglob("*.py"):
        assert path.relative_to(ROOT).as_posix() in names
    assert not any(name.startswith(("tests/", "docs/", "benchmarks/")) for name in names)


def test_the_clean_environment_has_the_wheel_and_not_the_checkout(clean):
    shown = run(clean, "python", "-c", "import hf_gradkit, sys; print(hf_gradkit.__file__, *sys.path, sep='\\n')")
    place, *path = shown.splitlines()
    assert place.startswith(str(clean / "env"))
    assert str(ROOT) not in path  # the libraries may lie below it, in an environment of the checkout


def test_help_imports_no_libraries_and_env_names_the_extras(clean):
    """`benchmarks/startup.py` times it; what makes it slow is an import."""
    code = "import sys; from hf_gradkit.cli.main import main; main(['--help']); print(sorted(sys.modules))"
    shown = run(clean, "python", "-c", code)
    assert "gradkit" in shown
    assert not {"torch", "transformers", "trl", "datasets", "yaml"} & set(ast.literal_eval(shown.splitlines()[-1]))
    shown = run(clean, "gradkit", "env")
    assert "hf-gradkit" in shown
    assert "extra docs" in shown


def test_names_of_recipes_and_launch_configurations(clean):
    shown = run(clean, "gradkit", "recipes")
    for name in resources("recipes"):
        assert f"\n{name}: " in f"\n{shown}"
    run(clean, "gradkit", "recipes", "gsm8k/linupper/sft", "--copy", "mine.yaml")
    assert (clean / "work" / "mine.yaml").read_text() == resources("recipes")["gsm8k/linupper/sft"].read_text()
    (installed,) = (clean / "env" / "lib").glob("python*/site-packages/hf_gradkit")
    for name in resources("accelerate_configs"):
        if name.startswith("cpu/"):
            line = run(clean, "gradkit", "sft", "--config", "mine.yaml", "--accelerate_config", name, "--dry_run")
            assert str(installed / "accelerate_configs" / f"{name}.yaml") in line


def test_demo_recipe_and_report(clean):
    assert "Next:" in run(clean, "gradkit", "demo", "reweighting", "--prepare_only")
    short = ["--max_steps", "2", "--logging_steps", "1", "--disable_tqdm", "true"]
    assert "gradkit report" in run(clean, "gradkit", "sft", "--config", "tiny/linupper/sft", *short)
    folder = clean / "work" / "runs" / "tiny-linupper"
    assert json.loads((folder / "trainer_state.json").read_text())["global_step"] == 2
    run(clean, "gradkit", "report", "runs/tiny-linupper")
    page = (folder / "report.html").read_text()
    assert "<img" in page
    assert "linupper" in page
