"""The demo is what a newcomer sees first: it runs, and says what really happened."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_gradkit.cli import demo
from hf_gradkit.data.synthetic import instruction_rows
from hf_gradkit.demo import reweighting
from hf_gradkit.reporting.runs import read_run


def test_reweighting_chapter(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(reweighting, "STEPS", 60)
    threads = torch.get_num_threads()
    assert demo.main(["--output_dir", str(tmp_path)]) == 0
    torch.set_num_threads(threads)
    out = capsys.readouterr().out
    uniform, linupper = (read_run(tmp_path / name) for name in ("uniform", "linupper"))
    assert uniform.groups() == linupper.groups() == ["noisy", "redundant", "useful"]
    assert set(uniform.series("group_weight/useful")[1]) == {1.0}
    weight = {name: linupper.last(f"group_weight/{name}") for name in linupper.groups()}
    assert weight["redundant"] < weight["useful"]
    assert f"{uniform.last('eval_loss'):.4f}" in out
    assert 'weighting="linupper"' in out
    assert (tmp_path / "reweighting.png").read_bytes().startswith(b"\x89PNG")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "linupper")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), base.parameters(), strict=True))


def test_prepare_only_writes_what_the_tiny_recipes_use(tmp_path, capsys):
    assert demo.main(["--prepare_only", "--output_dir", str(tmp_path)]) == 0
    rows = [json.loads(line) for line in (tmp_path / "data" / "train.jsonl").read_text().splitlines()]
    assert set(rows[0]) == {"prompt", "completion", "source"}
    assert (tmp_path / "model" / "config.json").exists()
    assert not (tmp_path / "uniform").exists()


def test_synthetic_sources_are_what_they_say():
    rows = instruction_rows(3000, seed=3)
    assert rows == instruction_rows(3000, seed=3)
    assert rows != instruction_rows(3000, seed=4)
    answers = {}
    for row in rows:
        answers.setdefault((row["source"], row["prompt"]), set()).add(row["completion"])
    per_prompt = {
        source: [len(found) for (of, _), found in answers.items() if of == source]
        for source in ("useful", "redundant", "noisy")
    }
    assert max(per_prompt["useful"]) == max(per_prompt["redundant"]) == 1  # one question, one answer
    assert len(per_prompt["redundant"]) == 3
    assert max(per_prompt["noisy"]) > 1
    with pytest.raises(ValueError, match="must sum to 1"):
        instruction_rows(10, shares={"useful": 0.5})
    with pytest.raises(ValueError, match="has the sources"):
        instruction_rows(10, shares={"other": 1.0})
