"""A method defined outside the package trains from a YAML, known only by its import path and its options."""

import json
import re
import sys
from pathlib import Path

import pytest
import yaml

import toy_method
from helpers import make_rows
from hf_gradkit.cli import sft
from hf_gradkit.data.tiny import tiny_llama
from hf_gradkit.reporting import read_example_log
from launch import run


@pytest.fixture
def config(tokenizer, tmp_path):
    tiny_llama(tokenizer, hidden_size=32).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"text": row["text"]}) + "\n" for row in make_rows(32)))

    def write(**options):
        settings = {
            "model_name_or_path": str(tmp_path / "model"),
            "dataset_name": str(tmp_path / "train.jsonl"),
            "output_dir": str(tmp_path / "out"),
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "bf16": False,
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            "example_log": True,
            "weighting": "toy_method:HardestTwice",
            **options,
        }
        path = tmp_path / "sft.yaml"
        path.write_text(yaml.safe_dump(settings))
        return str(path)

    return write


def test_it_trains_with_its_own_weights(config, tmp_path):
    toy_method.CALLS.clear()
    path = config(weighting_kwargs={"k": 1, "scope": "micro_batch", "warmup_ratio": 0.0})
    assert sft.main(["--config", path]) == 0
    assert toy_method.CALLS == [4] * 4
    rows = read_example_log(str(tmp_path / "out")).to_pylist()
    for step in range(4):
        of_step = sorted((row for row in rows if row["step"] == step), key=lambda row: row["loss"])
        assert [row["weight"] for row in of_step] == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2.0])


def test_its_options_are_checked(config, capsys):
    assert sft.main(["--config", config(weighting_kwargs={"kk": 1})]) == 2
    assert "has no option 'kk' for weighting='toy_method:HardestTwice'. Did you mean 'k'?" in capsys.readouterr().err


def test_the_quickstarts_method_trains_from_the_console(config, tmp_path):
    """The code block as it stands, in the folder the command runs in, by the command that the quickstart gives."""
    quickstart = (Path(__file__).parent.parent / "docs" / "quickstart.md").read_text()
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", quickstart, flags=re.S) if "class HardestTwice" in b)
    (tmp_path / "my_module.py").write_text(block)
    path = config(weighting="none", per_device_train_batch_size=1)
    command = [str(Path(sys.executable).parent / "gradkit"), "sft", "--config", path]
    command += ["--weighting", "my_module:HardestTwice", "--weighting_kwargs", '{"k": 4}']
    ended = run(command, cwd=tmp_path)
    assert ended.returncode == 0, ended.output[-3000:]
    weights = [row["weight"] for row in read_example_log(str(tmp_path / "out")).to_pylist()]
    assert len(weights) == 4
    assert len(set(weights)) > 1


def test_an_empty_file_is_named(config, tmp_path, capsys):
    path = config(weighting="linupper")
    (tmp_path / "train.jsonl").write_text("")
    assert sft.main(["--config", path]) == 2
    assert "train.jsonl' is empty" in capsys.readouterr().err
