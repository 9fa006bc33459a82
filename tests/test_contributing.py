"""The steps of docs/contributing.md, applied to a copy of the package as they stand, and the tests they end with."""

import os
import re
import shutil
import subprocess
import sys

from documents import ROOT

STEP = re.compile(r'^```(python|diff) title="([^"]+)"\n(.*?)^```', re.DOTALL | re.MULTILINE)


def steps() -> list[tuple[str, str, str]]:
    """Return kind, file and text of each step, in order."""
    return STEP.findall((ROOT / "docs" / "contributing.md").read_text(encoding="utf-8"))


def changed(text: str, diff: str) -> str:
    """Apply a diff without line numbers: what it leaves and removes must be in the file exactly once."""
    lines = diff.splitlines(keepends=True)
    before = "".join(line[1:] for line in lines if line[0] in " -")
    after = "".join(line[1:] for line in lines if line[0] in " +")
    assert text.count(before) == 1, f"found {text.count(before)} times:\n{before}"
    return text.replace(before, after)


def test_the_steps_work_as_they_stand(tmp_path):
    for folder in ("hf_gradkit", "recipes", "accelerate_configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for kind, name, text in steps():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(changed(path.read_text(), text) if kind == "diff" else text)
    tests = sorted((tmp_path / "tests").glob("test_*.py"))
    assert [test.name for test in tests] == [
        f"test_{name}.py" for name in ("cubic", "depthwise", "first_choice", "squared_hinge")
    ]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    where = [sys.executable, "-c", "import hf_gradkit; print(hf_gradkit.__file__)"]
    shown = subprocess.run(where, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    assert shown.stdout.strip() == str(tmp_path / "hf_gradkit" / "__init__.py")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), *map(str, tests)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    assert "7 passed" in ran.stdout


def test_without_a_step_the_tests_fail(tmp_path):
    names = [name for _, name, _ in steps()]
    assert len(names) == len(steps()) == 15
    registry = (ROOT / "hf_gradkit/weighting/registry.py").read_text()
    assert "cubic" not in registry  # the steps add what is not there
