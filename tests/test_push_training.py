"""Trainings that push themselves, to a real server: every `hub_strategy`, a failure on the way, no right to write."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from helpers import make_rows
from hf_gradkit.data.tiny import tiny_llama
from hub_server import COMMIT
from hub_uploads import Fault, environment, hub_that_takes
from launch import run

WORKER = Path(__file__).parent / "workers" / "push_training.py"
STRATEGIES = ("end", "every_save", "checkpoint", "all_checkpoints")


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """The server after all strategies, what each training said, and where."""
    folder = tmp_path_factory.mktemp("pushed")
    with hub_that_takes(folder / "hub") as hub:
        command = [sys.executable, str(WORKER), str(folder), *STRATEGIES]
        ended = run(command, timeout=400, env=environment(hub, folder / "home"))
        assert ended.returncode == 0, ended.output[-6000:]
        yield hub, json.loads((folder / "said.json").read_text()), folder


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_strategy_pushes_what_it_says(strategy, pushed):
    hub, _, folder = pushed
    there = hub.files(f"someone/{strategy}")
    assert there["model.safetensors"] == (folder / strategy / "model.safetensors").read_bytes()
    checkpoints = sorted({name.split("/")[0] for name in there if "checkpoint" in name.split("/")[0]})
    expected = {"checkpoint": ["last-checkpoint"], "all_checkpoints": ["checkpoint-2", "checkpoint-4"]}
    assert checkpoints == expected.get(strategy, [])
    in_progress = [message for message in hub.messages if message.startswith("Training in progress")]
    assert len(in_progress) >= 2 * (len(STRATEGIES) - 1)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_page_is_ours(strategy, pushed):
    hub, _, folder = pushed
    there = hub.files(f"someone/{strategy}")
    card = ModelCard(there["README.md"].decode())
    assert "linupper" in card.data.tags
    assert card.data.datasets == ["someone/rows"]
    assert card.data.to_dict().get("base_model") is None
    assert "[None]" not in card.text
    assert "this is step" not in card.text  # the training is over
    history = json.loads((folder / strategy / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    last = [entry["eval_loss"] for entry in history if "eval_loss" in entry][-1]
    assert {of.metric_type: of.metric_value for of in card.data.eval_results}["loss"] == round(last, 6)
    assert there["images/weights.png"][:4] == b"\x89PNG"
    assert 'from_pretrained("someone/' in card.text


def test_a_push_that_fails_in_the_background_is_told_of(tmp_path):
    with hub_that_takes(tmp_path / "hub") as hub:
        hub.faults.append(Fault("POST api/models/someone/every_save/commit", 500, times=1))
        command = [sys.executable, str(WORKER), str(tmp_path), "every_save"]
        ended = run(command, timeout=200, env=environment(hub, tmp_path / "home"))
    assert ended.returncode == 0, ended.output[-6000:]  # a push that fails in the background ends no training
    said = json.loads((tmp_path / "said.json").read_text())["every_save"]["warnings"]
    assert any("A push to 'someone/every_save' during training failed" in message for message in said)
    assert hub.files("someone/every_save")["model.safetensors"]


def test_a_push_at_the_end_that_fails_leaves_the_model_here(tmp_path):
    with hub_that_takes(tmp_path / "hub") as hub:
        hub.faults.append(Fault("POST api/models/someone/end/commit", 500))
        command = [sys.executable, str(WORKER), str(tmp_path), "end"]
        ended = run(command, timeout=200, env=environment(hub, tmp_path / "home"))
    assert ended.returncode != 0
    assert "the Hub answered 500" in ended.output
    assert f"the model is in {tmp_path / 'end'}: gradkit push {tmp_path / 'end'} OWNER/NAME" in ended.output
    assert (tmp_path / "end" / "model.safetensors").is_file()
    assert (tmp_path / "end" / "README.md").is_file()


def test_from_the_hub_by_the_command_and_back(tokenizer, tmp_path):
    """`gradkit sft` on a model and data of the Hub: the page names both, the commit, the command and its file."""
    root = tmp_path / "hub"
    tiny_llama(tokenizer, hidden_size=32).save_pretrained(root / "models" / "someone" / "base")
    tokenizer.save_pretrained(root / "models" / "someone" / "base")
    (root / "datasets" / "someone" / "rows").mkdir(parents=True)
    lines = [json.dumps({"prompt": row["prompt"], "completion": row["completion"]}) + "\n" for row in make_rows(24)]
    for split in ("train", "test"):
        (root / "datasets" / "someone" / "rows" / f"{split}.jsonl").write_text("".join(lines))
    config = {"model_name_or_path": "someone/base", "dataset_name": "someone/rows", "max_steps": 2, "use_peft": True}
    config |= {"weighting": "linupper", "eval_strategy": "steps", "eval_steps": 2, "bf16": False, "report_to": "none"}
    config |= {"push_to_hub": True, "hub_model_id": "someone/tuned", "output_dir": "out", "logging_steps": 1}
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump(config))
    with hub_that_takes(root) as hub:
        command = [sys.executable, "-m", "hf_gradkit.cli.main", "sft", "--config", "sft.yaml", "--hub_token", "t"]
        ended = run(command, timeout=200, env=environment(hub, tmp_path / "home"), cwd=tmp_path)
        assert ended.returncode == 0, ended.output[-6000:]
        assert "was pushed to the Hub as someone/tuned" in ended.output
        card = ModelCard(hub.files("someone/tuned")["README.md"].decode())
        assert "adapter_model.safetensors" in hub.files("someone/tuned")
    data = card.data.to_dict()
    assert (data["base_model"], data["base_model_relation"]) == ("someone/base", "adapter")
    assert (data["datasets"], data["library_name"]) == (["someone/rows"], "peft")
    assert {"hf_gradkit", "linupper", "lora", "sft"} <= set(data["tags"])
    assert card.data.eval_results[0].dataset_type == "someone/rows"
    assert card.data.eval_results[0].dataset_split == "test"
    assert "gradkit sft --config sft.yaml --hub_token ..." in card.text
    assert f"split `train`, commit `{COMMIT}`" in card.text
    assert "model_name_or_path: someone/base" in card.text
    assert "AutoPeftModelForCausalLM" in card.text


def test_a_token_that_may_not_write_is_told_before_training(tmp_path):
    with hub_that_takes(tmp_path / "hub") as hub:
        command = [sys.executable, str(WORKER), str(tmp_path), "end"]
        ended = run(command, timeout=200, env={**environment(hub, tmp_path / "home"), "HF_TOKEN": "reads"})
    assert ended.returncode != 0
    assert "the token may not write there" in ended.output
    assert not list(tmp_path.glob("end/checkpoint-*"))
