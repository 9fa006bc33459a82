"""Selections of SFT data: difficulty, IFD, and sampling by gradient norms with unbiased weights."""

import json
import math
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, concatenate_datasets
from transformers import AutoTokenizer, LlamaForCausalLM

import hf_gradkit
from difficulty_helpers import plain_log_probs, plain_scores, sft_data, sft_rows
from helpers import DEFAULTS, WORDS
from hf_gradkit.cli import select
from hf_gradkit.scoring import SFTFormat, add_difficulty, tokenize_sft
from hf_gradkit.scoring.token_rows import TokenRow
from hf_gradkit.selection import EL2N, IFD, PADA, SELECTORS, GraNd, Perplexity
from hf_gradkit.selection.difficulty import HARDEST, UNLABELLED
from hf_gradkit.selection.ifd import MISLEADING
from hf_gradkit.selection.picking import shares_of

N = 12


@pytest.fixture(scope="module")
def data():
    dataset = sft_data("prompt-completion", N)
    return dataset.add_column("source", ["web" if i % 3 else "books" for i in range(N)])


@pytest.fixture(scope="module")
def oracle(data, policy, tokenizer):
    """The scores of each example by their definitions."""
    model = LlamaForCausalLM.from_pretrained(policy)
    rows = [plain_scores(model, row) for row in tokenize_sft(data, tokenizer, SFTFormat())]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


# ---- difficulty -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("selector", [Perplexity, EL2N, GraNd])
def test_difficulty_by_definition(selector, data, oracle, policy, tmp_path):
    values, name = oracle[selector.name], selector.name
    for keep, best in (("highest", values), ("lowest", -values), ("middle", -abs(values - np.median(values)))):
        result = selector(model=policy, count=4, keep=keep, cache_folder=tmp_path).select(data)
        assert result.scores[name] == pytest.approx(values.tolist(), rel=1e-3)
        assert result.kept.tolist() == sorted(np.argsort(-best)[:4].tolist())
    assert result.dataset.features == data.features
    assert result.report["scored_by"].startswith(policy)


def test_scores_that_the_data_has(data, oracle, policy, tmp_path):
    scored = add_difficulty(data, policy, "el2n", cache_folder=tmp_path)
    result = EL2N(count=4).select(scored)
    assert result.kept.tolist() == sorted(np.argsort(-oracle["el2n"])[:4].tolist())
    assert result.report["scored_by"] == scored["difficulty_model"][0]
    with pytest.raises(ValueError, match=r"`model` is not set, and the data has no column 'grand'.*--by grand"):
        GraNd(count=4).select(scored)
    again = EL2N(model=policy, count=4, cache_folder=tmp_path).select(scored)  # scored anew, by name
    assert (again.kept == result.kept).all()


def test_the_hardest_are_left_out(data, oracle, policy, tmp_path):
    result = Perplexity(model=policy, count=4, drop_hardest=0.25, cache_folder=tmp_path).select(data)
    order = np.argsort(-oracle["perplexity"])
    assert result.kept.tolist() == sorted(order[3:7].tolist())
    assert result.report["ruled_out"] == {HARDEST: 3}


def test_the_same_share_of_each_group(data, oracle, policy, tmp_path):
    result = Perplexity(model=policy, count=6, group_column="source", cache_folder=tmp_path).select(data)
    for group, size in (("books", 2), ("web", 4)):
        rows = np.flatnonzero(np.array(data["source"]) == group)
        best = rows[np.argsort(-oracle["perplexity"][rows])[:size]]
        assert sorted(set(result.kept) & set(rows.tolist())) == sorted(best.tolist())
    with pytest.raises(ValueError, match=r"`group_column` is 'sourc', but .* Did you mean 'source'"):
        Perplexity(model=policy, count=6, group_column="sourc", cache_folder=tmp_path).select(data)


def test_quotas():
    assert shares_of(np.array([5, 3, 2]), 10).tolist() == [5, 3, 2]
    assert shares_of(np.array([5, 3, 2]), 5).sum() == 5
    assert shares_of(np.array([1, 1, 1]), 2).tolist() == [1, 1, 0]
    assert shares_of(np.array([0, 4]), 9).tolist() == [0, 4]


def test_examples_without_a_label_token_are_ruled_out(policy, tmp_path):
    rows = sft_data("prompt-completion", 6).to_list()
    rows[2]["prompt"] = " the cat" * 30  # longer than `max_length`
    result = Perplexity(model=policy, count=5, max_length=24, cache_folder=tmp_path).select(Dataset.from_list(rows))
    assert result.kept.tolist() == [0, 1, 3, 4, 5]
    assert result.scores["ruled_out"][2] == UNLABELLED
    with pytest.raises(ValueError, match=r"6 rows are asked for, and only 5 are left by the rules \('no label token'"):
        Perplexity(model=policy, count=6, max_length=24, cache_folder=tmp_path).select(Dataset.from_list(rows))


# ---- IFD ------------------------------------------------------------------------------------------------------


def ifd_by_hand(model, rows, start: int) -> np.ndarray:
    """Both mean losses of each answer, one sequence at a time, in float64."""
    model = LlamaForCausalLM.from_pretrained(model).double().eval()
    ratios = []
    for row in rows:
        answer = row.input_ids[row.labels != -100]
        alone = TokenRow(np.r_[start, answer], np.r_[-100, answer])
        losses = []
        for one in (row, alone):
            with torch.no_grad():
                log_p, labels = plain_log_probs(model, one)
            losses.append(-log_p[torch.arange(len(labels)), labels].mean().item())
        ratios.append(losses[0] / losses[1])
    return np.array(ratios)


@pytest.mark.parametrize("kind", ["prompt-completion", "chat prompt-completion", "chat"])
def test_ifd_by_definition(kind, policy, tokenizer, tmp_path):
    data = sft_data(kind, N)
    pairs = data if kind != "chat" else sft_data("chat prompt-completion", N)
    expected = ifd_by_hand(policy, tokenize_sft(pairs, tokenizer, SFTFormat()), tokenizer.eos_token_id)
    result = IFD(model=policy, count=3, drop_above=None, cache_folder=tmp_path).select(data)
    assert result.scores["ifd"] == pytest.approx(expected.tolist(), rel=1e-4)
    assert result.kept.tolist() == sorted(np.argsort(-expected)[:3].tolist())
    assert result.dataset.features == data.features
    bound = float(np.median(expected))
    below = IFD(model=policy, count=3, drop_above=bound, cache_folder=tmp_path).select(data)
    helpful = np.where(expected <= bound, expected, -1)
    assert below.kept.tolist() == sorted(np.argsort(-helpful)[:3].tolist())
    assert below.report["ruled_out"] == {MISLEADING: int((expected > bound).sum())}


@pytest.fixture(scope="module")
def templated(policy, tmp_path_factory):
    """A policy whose chat template reads tools, and arguments of the data's."""
    folder = tmp_path_factory.mktemp("templated") / "policy"
    shutil.copytree(policy, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    before = "{% if tools %}{{ tools | tojson }}{% endif %}{% if big %}{{ 'the cat ran ' * 8 }}{% endif %}"
    tokenizer.chat_template = before + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    return str(folder)


TOOLS = json.dumps([{"type": "function", "function": {"name": "find", "description": "the dog", "parameters": {}}}])
FURTHER = [{}, {"chat_template_kwargs": {"big": False}}, {"chat_template_kwargs": {"big": True}}, {"tools": TOOLS}]


def test_ifd_reads_what_the_template_reads(templated, tmp_path):
    """The same in both formats, kept apart in the cache."""
    scores = []
    for further in FURTHER:
        both = []
        for kind in ("chat", "chat prompt-completion"):
            rows = Dataset.from_list([row | further for row in sft_rows(kind, 6)])
            ifd = IFD(model=templated, count=1, drop_above=None, cache_folder=tmp_path)
            both.append(list(ifd.select(rows).scores["ifd"]))
        assert both[0] == pytest.approx(both[1], rel=1e-5)
        scores.append(both[0])
    none, small, big, tools = scores
    assert none == pytest.approx(small, rel=1e-5)
    assert none != pytest.approx(big, rel=1e-3)
    assert none != pytest.approx(tools, rel=1e-3)


def test_ifd_needs_prompts_and_answers(policy, tmp_path):
    ifd = IFD(model=policy, count=1, cache_folder=tmp_path)
    with pytest.raises(ValueError, match=r"needs 'prompt' and 'completion', or 'messages'\. Its columns: 'text'"):
        ifd.select(sft_data("text", 4))
    asked = Dataset.from_list([{"messages": [{"role": "user", "content": "a"}]}] * 3)
    with pytest.raises(ValueError, match="The messages of row 0 of the data do not end with an answer"):
        ifd.select(asked)
    with pytest.raises(ValueError, match="The selector 'ifd' needs a `model`, but it is None"):
        IFD(count=1)


# ---- sampling by gradient norms -------------------------------------------------------------------------------


def test_pada_draws_with_unbiased_weights(data, oracle, policy, tmp_path):
    result = PADA(model=policy, count=30, fraction=None, norm_share=0.8, cache_folder=tmp_path).select(
        Dataset.from_list(data.to_list() * 3)
    )
    norms = np.tile(oracle["grand"], 3)
    p = 0.8 * norms / norms.sum() + 0.2 / len(norms)
    assert result.scores["score"] == pytest.approx(p.tolist(), rel=1e-3)
    assert result.scores["weight"] == pytest.approx((1 / (len(norms) * p)).tolist(), rel=1e-3)
    assert len(result.dataset) == 30
    assert result.scores["draws"] == np.bincount(result.kept, minlength=36).tolist()
    for row, number in zip(result.dataset, result.kept, strict=True):
        assert row["uid"] == data[int(number) % N]["uid"]
        assert row["weight"] == pytest.approx(1 / (36 * p[number]), rel=1e-3)


def test_training_on_the_rows_drawn_is_training_on_all(policy, tokenizer, tmp_path):
    """The gradient of a step over many draws, divided by the weighted number of tokens, is that over all rows."""
    rng = random.Random(0)
    rows = [{"prompt": rng.choice(WORDS), "completion": " ".join(rng.choices(WORDS, k=30))} for _ in range(20)]
    rows += [{"prompt": rng.choice(WORDS), "completion": rng.choice(WORDS)} for _ in range(20)]
    whole = add_difficulty(Dataset.from_list(rows), policy, "grand", cache_folder=tmp_path / "cache")
    drawn = PADA(norm_share=0.9, fraction=1.0).select(concatenate_datasets([whole] * 20)).dataset  # 800 draws

    def gradient(dataset, **options):
        steps = len(dataset) // 40
        options |= {"max_steps": 1, "per_device_train_batch_size": 40, "gradient_accumulation_steps": steps}
        args = hf_gradkit.SFTConfig(str(tmp_path / "out"), **{**DEFAULTS, "max_grad_norm": 0.0, **options})
        trainer = hf_gradkit.SFTTrainer(model=policy, args=args, train_dataset=dataset, processing_class=tokenizer)
        before = torch.cat([p.detach().clone().flatten() for p in trainer.model.parameters()])
        trainer.train()
        return before - torch.cat([p.detach().flatten() for p in trainer.model.parameters()])

    goal = gradient(whole)
    found = [gradient(drawn, weight_column="weight", normalize_weight_column=on) for on in (True, False)]
    right, wrong = (float(one @ goal / goal.norm() ** 2) for one in found)
    assert right == pytest.approx(1, abs=0.06)
    assert wrong > 1.3  # short answers have long gradients, are drawn more often, and have fewer tokens
    assert torch.nn.functional.cosine_similarity(found[0], goal, dim=0) > 0.97


def test_the_weights_reach_the_trainer(data, policy, tokenizer, tmp_path):
    """A weight column like any other, and one that the data must not have yet."""
    drawn = PADA(model=policy, count=8, norm_share=0.9, seed=2, cache_folder=tmp_path / "cache").select(data).dataset
    args = hf_gradkit.SFTConfig(str(tmp_path / "out"), weight_column="weight", **{**DEFAULTS, "max_steps": 1})
    trainer = hf_gradkit.SFTTrainer(model=policy, args=args, train_dataset=drawn, processing_class=tokenizer)
    trainer.train()
    entry = next(entry for entry in trainer.state.log_history if "weights/mean" in entry)
    assert min(drawn["weight"]) - 1e-6 <= entry["weights/min"] <= entry["weights/max"] <= max(drawn["weight"]) + 1e-6
    with pytest.raises(ValueError, match="adds the column 'weight', and the data has one of that name"):
        PADA(model=policy, count=2, cache_folder=tmp_path / "cache").select(drawn)


# ---- all of them ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("perplexity", {"keep": "most"}, "`keep` is 'most'. Known values: 'highest', 'lowest', 'middle'."),
        ("el2n", {"drop_hardest": 1.0}, "`drop_hardest` must be at least 0 and below 1"),
        ("grand", {"max_length": 1}, "`max_length` must be an integer of at least 2"),
        ("el2n", {"drop_hardest": "0.1"}, "`drop_hardest` must be at least 0 and below 1, but it is '0.1'"),
        ("ifd", {"model": "m", "drop_above": 0}, "`drop_above` must be above 0, but it is 0."),
        ("fifa", {"margin_cap": "0.9"}, "`margin_cap` is a quantile, between 0 and 1, but it is '0.9'."),
        ("perplexity", {"dtype": "float31"}, "`dtype` is 'float31'. Did you mean 'float32'?"),
        ("ifd", {"model": "m", "dtype": "float31"}, "`dtype` is 'float31'"),
        ("pada", {"dtype": "float31"}, "`dtype` is 'float31'"),
        ("grad_cos", {"model": "m", "target": "t", "dtype": "float31"}, "`dtype` is 'float31'"),
        ("pada", {"norm_share": 1.0}, "`norm_share` must be at least 0 and below 1, but it is 1.0."),
    ],
)
def test_options_that_cannot_be(name, options, message):
    with pytest.raises(ValueError, match=message):
        SELECTORS[name](fraction=0.5, **options)


@pytest.mark.parametrize("by", ["perplexity", "el2n", "grand", "ifd", "pada"])
def test_by_name_on_the_command_line(by, data, policy, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data.to_json("rows.jsonl")
    options = {"model": policy, **({"drop_above": None} if by == "ifd" else {})}
    arguments = ["--dataset_name", "rows.jsonl", "--by", by, "--count", "5", "--output_dir", "out"]
    assert select.main([*arguments, "--selector_kwargs", json.dumps(options)]) == 0
    said = capsys.readouterr().out
    assert "gradkit sft --dataset_name out/selected.jsonl" in said
    lines = [json.loads(line) for line in Path("out/selected.jsonl").read_text().splitlines()]
    assert len(lines) == 5
    if by == "pada":
        assert "--weight_column weight --normalize_weight_column true" in said
        assert all(math.isfinite(line["weight"]) for line in lines)
    else:
        assert all(line in data.to_list() for line in lines)
    assert Path("out/report.html").exists()
