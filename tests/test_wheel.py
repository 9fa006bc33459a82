"""The wheel holds what the names of recipes and launch configurations need after `pip install`."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_recipes_and_launch_configurations_are_in_the_wheel(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=120,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    for folder in ("recipes", "accelerate_configs"):
        for path in (ROOT / folder).rglob("*.yaml"):
            assert f"hf_gradkit/{folder}/{path.relative_to(ROOT / folder)}" in names
    assert not any(name.startswith("tests/") for name in names)
    # The names work from the unpacked wheel, in a folder that has nothing to do with the checkout.
    options = ["--config", "tiny/linupper/sft", "--accelerate_config", "cpu/multi_gpu", "--dry_run"]
    shown = subprocess.run(
        [sys.executable, "-m", "hf_gradkit.cli.main", "sft", *options],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"},
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout
    assert str(tmp_path / "site" / "hf_gradkit" / "accelerate_configs" / "cpu" / "multi_gpu.yaml") in shown
