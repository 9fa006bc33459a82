"""The demo is what a newcomer sees first: it runs, and says what really happened."""

import json
import re
import statistics

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers import make_rows
from hf_gradkit.cli import demo
from hf_gradkit.data.synthetic import instruction_rows
from hf_gradkit.demo import material, preference, reweighting
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


def test_preference_chapter(tmp_path, capsys, monkeypatch):
    for name, value in {"SFT_STEPS": 30, "REWARD_STEPS": 30, "STEPS": 20, "EVERY": 10, "SAMPLES": 2}.items():
        monkeypatch.setattr(preference, name, value)
    for name, value in {"BASE_ROWS": 500, "PAIRS": 256, "TEST_PAIRS": 40}.items():
        monkeypatch.setattr(material, name, value)
    threads = torch.get_num_threads()
    assert demo.main(["preference", "--output_dir", str(tmp_path)]) == 0
    torch.set_num_threads(threads)
    out = capsys.readouterr().out
    folder = tmp_path / "preference"
    dpo, madpo, rpo = (read_run(folder / name) for name in ("dpo", "madpo", "rpo"))
    assert not dpo.series("weights/mean")[0]
    assert madpo.info["weighting"] == "madpo"
    assert rpo.info["loss_type"] == ["rpo"]
    assert dpo.series("eval_logps/chosen")[0] == [0, 10, 20]
    assert len({run.series("eval_logps/chosen")[1][0] for run in (dpo, madpo, rpo)}) == 1  # one policy to start from
    rows = dict(re.findall(r"^(start|dpo|madpo|rpo) +(.*)$", out, re.MULTILINE))
    assert (
        rows["dpo"].split()[3]
        == f"{dpo.series('eval_logps/chosen')[1][-1] - dpo.series('eval_logps/chosen')[1][0]:.1f}"
    )
    sampled = preference.sample_rewards(folder / "madpo")
    assert sampled == preference.sample_rewards(folder / "madpo")
    assert len(sampled) == 48
    assert rows["madpo"].startswith(f"{statistics.fmean(sampled):.2f} +-")
    assert "fitted temperature" in out
    assert "One seed" in out
    assert (folder / "preference.png").read_bytes().startswith(b"\x89PNG")


def test_chapters_share_a_folder(tmp_path, capsys, monkeypatch):
    for name, value in {"TRAIN_ROWS": 50, "BASE_ROWS": 50, "PAIRS": 20, "TEST_PAIRS": 5}.items():
        monkeypatch.setattr(material, name, value)
    assert demo.main(["--prepare_only", "--output_dir", str(tmp_path)]) == 0
    assert demo.main(["preference", "--prepare_only", "--output_dir", str(tmp_path)]) == 0
    assert str(tmp_path / "preference" / "model") in capsys.readouterr().out
    columns = {}
    for name in ("sft", "train", "test"):
        lines = (tmp_path / "preference" / "data" / f"{name}.jsonl").read_text().splitlines()
        columns[name] = set(json.loads(lines[0]))
    assert columns["sft"] == {"prompt", "completion"}
    assert columns["train"] == columns["test"] == {"prompt", "chosen", "rejected", "true_margin"}
    assert (tmp_path / "data" / "train.jsonl").exists()


def test_a_tiny_model_of_ones_own_texts(tmp_path, capsys):
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps({"chosen": row["text"], "number": 1}) + "\n" for row in make_rows(64)))
    assert demo.main(["--prepare_only", "--texts", str(data), "--output_dir", str(tmp_path / "mine")]) == 0
    assert str(tmp_path / "mine" / "model") in capsys.readouterr().out
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "mine" / "model")
    assert len(tokenizer("the big red house")["input_ids"]) <= 5  # it has learned these texts' words
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "mine" / "model").config.vocab_size == len(tokenizer)
    assert not (tmp_path / "mine" / "data").exists()
    with pytest.raises(ValueError, match="Add --prepare_only"):
        demo.main(["--texts", str(data)])
    data.write_text('{"number": 1}\n')
    with pytest.raises(ValueError, match=r"no column of plain text\. Its columns: number"):
        demo.main(["--prepare_only", "--texts", str(data), "--output_dir", str(tmp_path / "none")])


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
