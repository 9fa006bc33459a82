"""A method defined outside the package trains from a YAML, known only by its import path and its options."""

import json

import pytest
import yaml

import toy_method
from helpers import make_rows
from hf_gradkit.cli import sft
from hf_gradkit.data.tiny import tiny_llama
from hf_gradkit.reporting import read_example_log


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
