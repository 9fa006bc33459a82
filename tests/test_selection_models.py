"""What a selection was made by is known by the content of its models, in its report and in what it counts as."""

import json
import re
from pathlib import Path

import pytest
from datasets import Dataset

from difficulty_helpers import sft_data
from hf_gradkit.cli.main import main
from hf_gradkit.reporting.selection import render
from hf_gradkit.scoring.records import describe_model
from hf_gradkit.selection import FiFA, Random
from hf_gradkit.selection.embedders import SentenceTransformers
from hf_gradkit.selection.registry import build_selector
from pair_helpers import save_policy
from pairs import make_pairs, save_reward_model, write_pairs

REWARD = {"margin": {"by": "reward_model", "model": "reward"}, "embedder": None}


@pytest.fixture
def pairs(tokenizer, tmp_path, monkeypatch):
    """Pairs, a reward model and a policy in the working directory."""
    monkeypatch.chdir(tmp_path)
    save_reward_model(tokenizer, Path("reward"))
    save_policy(Path("policy"), tokenizer)
    rows = make_pairs(24, "prompt")
    write_pairs(Path("pairs.jsonl"), rows)
    return Dataset.from_list(rows)


def select(*further: str) -> int:
    options = ["--by", "fifa", "--selector_kwargs", json.dumps(REWARD), "--fraction", "0.25"]
    return main(["select", "--dataset_name", "pairs.jsonl", *options, "--output_dir", "out", *further])


def test_another_model_at_the_same_path_is_another_selection(pairs, tokenizer, capsys):
    assert select() == 0
    before, recorded = Path("out/selected.jsonl").read_bytes(), json.loads(Path("out/selection.json").read_text())
    assert recorded["models"] == {"margin": {"model": describe_model("reward")}}
    assert re.fullmatch(r"reward@[0-9a-f]{12}", recorded["models"]["margin"]["model"])
    assert select() == 0  # the same model: the same selection
    save_reward_model(tokenizer, Path("reward"), seed=5)
    capsys.readouterr()
    assert select() == 2
    assert "holds another selection: 6 of 24 rows by 'fifa', with other options or models" in capsys.readouterr().err
    assert Path("out/selected.jsonl").read_bytes() == before
    assert select("--overwrite", "true") == 0
    after = json.loads(Path("out/selection.json").read_text())["models"]
    assert after == {"margin": {"model": describe_model("reward")}} != recorded["models"]


def test_a_model_elsewhere_is_known_by_its_content(pairs):
    reward = describe_model("reward").partition("@")[2]
    Path("reward").rename("moved")
    result = FiFA(count=6, margin={"by": "reward_model", "model": "moved"}, embedder=None, cache_folder="c").select(
        pairs
    )
    assert result.report["models"] == {"margin": {"model": f"moved@{reward}"}}
    assert f"moved@{reward}" in render(result.report, result.scores)


def test_every_component_with_a_model_is_recorded(pairs):
    parts = {
        "margin": {"by": "implicit", "model": "policy", "reference": "policy"},
        "quality": {"by": "classifier", "model": "reward"},
        "embedder": {"by": "transformers", "model": "policy"},
    }
    policy, reward = describe_model("policy"), describe_model("reward")
    expected = {"margin": {"model": policy, "reference": policy}, "quality": {"model": reward}}
    expected["embedder"] = {"model": policy}
    assert FiFA(count=6, **parts).models() == expected
    parts["quality"] = {"by": "perplexity", "model": "policy"}
    assert FiFA(count=6, **parts).models() == {**expected, "quality": {"model": policy}}
    assert FiFA(count=6, **parts, quality_weight=0).models().keys() == {"margin", "embedder"}
    assert FiFA(count=6, margin=len).models() == Random(count=6).models() == {}
    before = SentenceTransformers("policy").models()
    (Path("policy") / "0_Pooling").mkdir()
    (Path("policy") / "0_Pooling" / "config.json").write_text("{}")
    assert SentenceTransformers("policy").models() != before


@pytest.mark.parametrize("by", ["perplexity", "el2n", "grand", "pada", "ifd", "grad_cos"])
def test_selectors_of_sft_data_record_theirs(by, policy, tmp_path):
    data = sft_data("prompt-completion", 6)
    options = {"target": data.select([0])} if by == "grad_cos" else {}
    selector = build_selector(by, {"count": 2, "model": policy, "cache_folder": tmp_path, **options})
    report = selector.select(data).report
    assert report["models"] == {"model": describe_model(policy)}
    assert report.get("scored_by", report["models"]["model"]) == report["models"]["model"]


def test_several_models_and_none(policy):
    one = describe_model(policy)
    assert build_selector("el2n", {"count": 2, "model": [policy, policy]}).models() == {"model": f"{one}, {one}"}
    assert build_selector("el2n", {"count": 2}).models() == {}
