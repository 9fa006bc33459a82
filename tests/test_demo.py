"""The demo is what a newcomer sees first: it runs, and says what really happened."""

import contextlib
import io
import json
import re
import statistics

import pytest
import torch
import trl
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers import make_rows
from hf_gradkit import DPOTrainer
from hf_gradkit.cli import demo
from hf_gradkit.data.synthetic import instruction_rows
from hf_gradkit.data.synthetic_pairs import edited_rows, prompts, true_reward
from hf_gradkit.demo import CHAPTERS, entanglement, material, overhead, preference, reweighting
from hf_gradkit.reporting.runs import read_run


@pytest.fixture(scope="module")
def entangled(tmp_path_factory):
    """The default chapter, shorter: its folder, what it printed, and the classes it trained with."""
    printed, trained = io.StringIO(), []
    original = entanglement.train

    def train(trainer, *rest):
        trained.append(type(trainer))
        return original(trainer, *rest)

    folder = tmp_path_factory.mktemp("entangled")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        for name, value in {"SFT_STEPS": 60, "STEPS": 30, "TIMED_STEPS": 12, "train": train}.items():
            patch.setattr(entanglement, name, value)
        for name, value in {"BASE_ROWS": 1000, "PAIRS": 480, "TEST_PAIRS": 40}.items():
            patch.setattr(material, name, value)
        patch.setattr(preference, "SAMPLES", 2)
        assert demo.main(["--output_dir", str(folder)]) == 0
    torch.set_num_threads(threads)
    return folder / "entanglement", printed.getvalue(), trained


def test_the_default_chapter_watches_trls_own_trainer(entangled):
    folder, out, trained = entangled
    assert trained == [trl.SFTTrainer, trl.DPOTrainer, DPOTrainer, trl.DPOTrainer]
    lines = [json.loads(line) for line in (folder / "dpo" / "entanglement.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 31))
    counts = [
        round(16 * sum(1 - line[f"entanglement/{name}"] for line in lines))
        for name in ("chosen_rises", "observed_chosen_rises")
    ]
    agreement = statistics.fmean(line["entanglement/agreement"] for line in lines)
    words = " ".join(out.split())
    assert f"Of the 480 pairs that TRL's DPO trained on, the monitor said of {counts[0]}, before the step" in words
    assert f"after the step {counts[1]} had. {agreement:.1%} of all answers" in words
    assert agreement > 0.9
    assert [json.loads(line)["step"] for line in (folder / "timed" / "entanglement.jsonl").open()] == [
        *range(1, 16, 2)
    ]
    assert re.search(r"A watched step took \d\.\d\d times a plain step \(half of 5 ratios", words)


def test_the_default_chapter_prints_what_its_runs_logged(entangled, monkeypatch):
    folder, out, _ = entangled
    runs = {name: read_run(folder / name) for name in ("dpo", "rpo")}
    assert runs["rpo"].info["loss_type"] == ["rpo"]
    tables = re.findall(r"^ +(10|20|30) +(\S+) +(\S+) +(\S+) +(\d+%) +(\d+%)$", out, re.MULTILINE)
    assert len(tables) == 6
    for i, run in enumerate(runs.values()):
        margins, chosen = (run.series(f"rewards/{name}")[1] for name in ("margins", "chosen"))
        falls = [1 - value for value in run.series("entanglement/chosen_rises")[1]]
        for row, margin, logp, share in zip(tables[3 * i : 3 * i + 3], margins, chosen, falls, strict=True):
            assert (row[1], row[2], row[4]) == (f"{margin:+.3f}", f"{logp / 0.1:+.2f}", f"{share:.0%}")
    policy, row = (
        next(line for line in out.splitlines() if line.startswith(name)) for name in ("start", "TRL's DPO ")
    )
    assert row.split()[2:5] == [
        f"{runs['dpo'].last('eval_rewards/margins'):+.3f}",
        f"{runs['dpo'].last('eval_rewards/accuracies'):.0%}",
        f"{runs['dpo'].last('eval_rewards/chosen') / 0.1:+.2f}",
    ]
    monkeypatch.setattr(preference, "SAMPLES", 2)
    assert policy.split()[1] == f"{statistics.fmean(preference.sample_rewards(folder / 'policy')):+.2f}"
    ending = out[out.index("In your own TRL script") :]
    assert "    trainer.add_callback(EntanglementCallback())" in ending
    assert f"gradkit report {folder / 'dpo'} {folder / 'rpo'}" in ending
    assert (folder / "entanglement.png").read_bytes().startswith(b"\x89PNG")


def test_the_chapter_says_when_there_was_nothing_to_see():
    fine = {"reward margin": 0.2, "pairs right": 0.8, "chosen drift": 0.5}
    assert entanglement.effect(fine).startswith("The effect did not occur in this run")
    assert "lost 0.50 nats" in entanglement.effect(fine | {"chosen drift": -0.5})
    rewards = {"dpo": [0.0, 1.0], "rpo": [0.1, 1.0]}
    said = entanglement.remedy({"dpo": fine, "rpo": fine | {"chosen drift": 0.4}}, rewards)
    assert "Bought: nothing. Cost: chosen drift +0.50 -> +0.40." in said
    assert "true reward +0.50 -> +0.55 is within the noise" in said
    said = entanglement.remedy({"dpo": fine, "rpo": fine | {"chosen drift": 0.6}}, {"dpo": [0, 0.1], "rpo": [1, 1.1]})
    assert "Bought: chosen drift +0.50 -> +0.60, true reward +0.05 -> +1.05. Cost: nothing." in said


def test_cost_ratios():
    assert overhead.cost_ratios([1.0, 1.5, 1.0, 3.0, 2.0]) == ([1.5, 2.0], [2 / 3])
    steady = [1.0, 1.2] * 10
    assert overhead.cost_in_words(steady).startswith("1.20 times a plain step (half of 9 ratios between 1.20 and 1.20")
    assert overhead.cost_in_words(steady).endswith("the noise: 1.00 to 1.00)")


def test_edited_pairs_differ_in_one_word_that_makes_one_worse():
    rows = edited_rows(200, seed=3, split="test")
    assert rows == edited_rows(200, seed=3, split="test")
    for row in rows:
        chosen, rejected = row["chosen"].split(), row["rejected"].split()
        assert sum(a != b for a, b in zip(chosen, rejected, strict=True)) == 1
        rewards = [true_reward(row["prompt"], row[name]) for name in ("chosen", "rejected")]
        assert row["true_margin"] == rewards[0] - rewards[1] > 0
    assert {row["prompt"] for row in rows} <= set(prompts("test"))


def test_every_chapter_is_there():
    assert next(iter(CHAPTERS)) == "entanglement"
    for name in CHAPTERS:
        assert callable(demo._chapter(name).run)
        assert callable(demo._chapter(name).prepare)


def test_reweighting_chapter(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(reweighting, "STEPS", 60)
    threads = torch.get_num_threads()
    assert demo.main(["reweighting", "--output_dir", str(tmp_path)]) == 0
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
    assert demo.main(["reweighting", "--prepare_only", "--output_dir", str(tmp_path)]) == 0
    assert not (tmp_path / "preference").exists()
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


def test_prepare_only_writes_what_the_tiny_recipes_use(tmp_path, capsys, monkeypatch):
    for name, value in {"TRAIN_ROWS": 50, "BASE_ROWS": 50, "PAIRS": 20, "TEST_PAIRS": 5}.items():
        monkeypatch.setattr(material, name, value)
    assert demo.main(["--prepare_only", "--output_dir", str(tmp_path)]) == 0
    rows = [json.loads(line) for line in (tmp_path / "data" / "train.jsonl").read_text().splitlines()]
    assert set(rows[0]) == {"prompt", "completion", "source"}
    assert (tmp_path / "model" / "config.json").exists()
    assert not (tmp_path / "uniform").exists()
    for chapter in ("preference", "entanglement"):
        assert (tmp_path / chapter / "data" / "train.jsonl").exists()
        assert (tmp_path / chapter / "model" / "config.json").exists()


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
