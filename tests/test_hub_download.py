"""Models and data sets named as on the Hub are fetched by the real client, from a server on the loopback address."""

import json
import sys
from pathlib import Path

import pytest

from helpers import make_rows
from hf_gradkit.data.tiny import tiny_llama
from hub_server import hub
from launch import run


@pytest.fixture
def repositories(tokenizer, tmp_path):
    root = tmp_path / "hub"
    tiny_llama(tokenizer, hidden_size=32).save_pretrained(root / "models" / "someone" / "tiny")
    tokenizer.save_pretrained(root / "models" / "someone" / "tiny")
    rows = root / "datasets" / "someone" / "rows"
    rows.mkdir(parents=True)
    for split, n in (("train", 24), ("test", 8)):
        lines = [json.dumps({"question": r["prompt"], "answer": r["completion"]}) for r in make_rows(n)]
        (rows / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return root


def sft(endpoint, tmp_path, dataset="someone/rows"):
    options = [
        *("--model_name_or_path", "someone/tiny", "--dataset_name", dataset),
        *("--column_mapping", '{"question": "prompt", "answer": "completion"}'),
        *("--output_dir", str(tmp_path / "out"), "--max_steps", "2", "--eval_strategy", "steps", "--eval_steps", "2"),
        *("--use_cpu", "true", "--bf16", "false", "--report_to", "none", "--weighting", "linupper"),
    ]
    environment = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home"), "CI": "1"}
    return run([sys.executable, "-m", "hf_gradkit.cli.main", "sft", *options], timeout=120, env=environment)


def test_model_and_data_come_from_the_hub(repositories, tmp_path):
    with hub(repositories) as (endpoint, requests):
        ended = sft(endpoint, tmp_path)
    assert ended.returncode == 0, ended.output[-4000:]
    asked = " ".join(requests)
    assert "GET someone/tiny/resolve/" in asked
    assert "datasets/someone/rows" in asked
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert any("eval_loss" in entry for entry in history)
    assert any("weights/ess" in entry for entry in history)


def test_a_data_set_that_is_not_there_is_named(repositories, tmp_path):
    with hub(repositories) as (endpoint, _):
        ended = sft(endpoint, tmp_path, dataset="someone/rwos")
    assert ended.returncode == 2
    assert "someone/rwos" in ended.output
    assert "Traceback" not in ended.output


def test_embeddings_of_a_hub_model_are_known_by_its_content(tmp_path):
    """The name is the same, but its main branch moved: the vectors that were kept are those of another model."""
    pytest.importorskip("sentence_transformers")
    worker = Path(__file__).parent / "workers" / "hub_sentences.py"
    ended = run([sys.executable, str(worker), str(tmp_path)], timeout=180)
    assert ended.returncode == 0, ended.output[-4000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["kept"] == [1, 1, 2, 2]
    assert result["apart"][1] == 0
    assert result["apart"][2] == result["apart"][3] > 0.01
    assert any("someone/sentences/revision/v2" in request for request in result["requests"])
