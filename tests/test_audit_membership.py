"""The membership audit of models that have memorised records, from the folder to the figures."""

import json
import math
import shutil
import zlib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from audit_helpers import LENGTH, memorise, record_tokenizer, records, save_base, slow_log_probs
from hf_gradkit.audit import audit_membership, hold_out
from hf_gradkit.audit.attacks import TokenAttack, TokenRecord
from hf_gradkit.audit.evaluation import auc, null_error
from hf_gradkit.audit.models import AuditedModel
from hf_gradkit.scoring import SFTFormat
from hf_gradkit.scoring.language_models import load_language_model

LAYOUT = SFTFormat(max_length=LENGTH)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("audit")


@pytest.fixture(scope="module")
def base(folder):
    return save_base(folder, record_tokenizer())


@pytest.fixture(scope="module")
def full(folder, base):
    return memorise(base, folder / "full", AutoTokenizer.from_pretrained(base))


@pytest.fixture(scope="module")
def lora(folder, base):
    return memorise(base, folder / "lora", AutoTokenizer.from_pretrained(base), lora=True)


def run(model, tmp_path, dataset=None, **options):
    """Audit with few resamples and a cache of its own."""
    defaults = {"layout": LAYOUT, "bootstrap_rounds": 100, "cache_folder": tmp_path / "cache"}
    return audit_membership(model, records(260) if dataset is None else dataset, **{**defaults, **options})


def aucs(audit) -> dict[str, float]:
    return {name: figures["auc"] for name, figures in audit.figures["attacks"].items()}


# ---- what leaks is found ----------------------------------------------------------------------------------------


def test_a_model_that_has_memorised_its_records(full, base, tmp_path):
    audit = run(full, tmp_path, reference_model=base)
    assert audit.members.sum() == 200
    assert audit.figures["unsound"] is None
    assert not audit.figures["confounded"]
    assert aucs(audit)["flora"] > 0.99
    flora = audit.figures["attacks"]["flora"]
    assert flora["leaks"]
    assert flora["tpr"]["0.1"]["tpr"] > 0.9
    assert not flora["tpr"]["0.01"]["supported"]  # 60 non-members
    utility = audit.figures["utility"]
    assert utility["member_loss"] < utility["held_out_loss"] - 0.1
    json.dumps(audit.figures)


def test_with_an_adapter_the_base_is_the_adapter_off(lora, base, tmp_path):
    audit = run(lora, tmp_path)
    assert audit.figures["reference"].endswith("base (adapter off)")
    assert aucs(audit)["flora"] > 0.95
    with_base = run(lora, tmp_path / "given", reference_model=base)
    for name, scores in audit.scores.items():
        assert np.abs(scores - with_base.scores[name]).max() < 1e-5, name


def test_a_model_in_memory_gives_what_its_folder_gives(lora, base, tmp_path):
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), lora).train()
    expected = run(lora, tmp_path)
    found = run(model, tmp_path / "live", tokenizer=AutoTokenizer.from_pretrained(base), hold_out=lora)
    for name, scores in expected.scores.items():
        assert np.abs(scores - found.scores[name]).max() < 1e-5, name
    assert model.training
    assert "forward" not in vars(model.get_base_model())
    assert model.active_adapters == ["default"]


def test_a_model_that_was_not_fine_tuned_knows_nothing(base, tmp_path):
    """Against a reference of other weights; against itself, nothing differs at all."""
    split = hold_out(records(260), 0.3)
    other = load_language_model(base)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    audit = run(base, tmp_path, hold_out=split.record, reference_model=other)
    limit = 4 * null_error(len(split.train), len(split.held_out))
    for name, found in aucs(audit).items():
        assert abs(found - 0.5) < limit, name
    itself = run(base, tmp_path, hold_out=split.record, reference_model=base)
    for name in ("flora", "log_reference", "error_zone", "window"):
        assert aucs(itself)[name] == 0.5


def test_shuffled_labels_know_nothing(full, base, tmp_path):
    audit = run(full, tmp_path, reference_model=base)
    members = np.random.default_rng(0).permutation(audit.members)
    for name, scores in audit.scores.items():
        assert abs(auc(scores, members) - 0.5) < 4 * null_error(200, 60), name


# ---- the scores are what they are said to be -----------------------------------------------------------------------


def slow_scores(model, base, tokenizer, ids, labels) -> dict[str, float]:
    """Return each score of one text, alone, in float64, from the logits and the definitions."""
    target, reference = slow_log_probs(model, ids), slow_log_probs(base, ids)
    places = [t for t in range(len(ids) - 1) if labels[t + 1] != -100]
    tokens = [int(ids[t + 1]) for t in places]
    p = [target[t, token].item() for t, token in zip(places, tokens, strict=True)]
    q = [reference[t, token].item() for t, token in zip(places, tokens, strict=True)]
    normed, wrong = [], []
    for t, token in zip(places, tokens, strict=True):
        mean = (target[t].exp() * target[t]).sum()
        std = (target[t].exp() * (target[t] - mean) ** 2).sum().sqrt()
        normed.append(((target[t, token] - mean) / std).item())
        wrong.append(target[t].argmax().item() != token)
    n, lowest = len(p), max(1, len(p) // 5)
    loss, base_loss = -sum(p) / n, -sum(q) / n
    gains = [a - b for a, b in zip(p, q, strict=True)]
    text = tokenizer.decode(
        [i for i, label in zip(ids, labels, strict=True) if label != -100], skip_special_tokens=True
    )
    shares = []
    for w in (2, 3, 4, 6, 9, 13, 18, 25, 32, 40):
        if w <= n:
            shares.append(sum(sum(gains[i : i + w]) > 0 for i in range(n - w + 1)) / (n - w + 1))
    return {
        "loss": -loss,
        "zlib": -loss / len(zlib.compress(text.encode())),
        "min_k": sum(sorted(p)[:lowest]) / lowest,
        "min_k_plus_plus": sum(sorted(normed)[:lowest]) / lowest,
        "flora": -loss / base_loss,
        "log_reference": base_loss - loss,
        "error_zone": (sum(g for g, w in zip(gains, wrong, strict=True) if w and g > 0) + 1e-3)
        / (sum(-g for g, w in zip(gains, wrong, strict=True) if w and g < 0) + 1e-3),
        "window": sum(shares) / len(shares),
    }


@pytest.mark.parametrize("kind", ["text", "completion"])
def test_each_score_is_that_of_a_slow_computation(kind, lora, base, tmp_path):
    """One text at a time, in float64, from logits; tokens are those that the tokenizer gives, ending with its end."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    texts = list(records(260)["text"])[:10]
    rows = [{"text": text} for text in texts]
    if kind == "completion":
        rows = [{"prompt": text[:cut], "completion": text[cut:]} for text in texts for cut in [text.index(" in ")]]
    data = Dataset.from_list(rows)
    audit = run(lora, tmp_path, data.select(range(5)), non_members=data.select(range(5, 10)))
    model, before = load_language_model(lora), AutoModelForCausalLM.from_pretrained(base)
    for i, row in enumerate(rows):
        prompt = tokenizer(row.get("prompt", ""))["input_ids"]
        whole = row.get("text") or row["prompt"] + row["completion"]
        ids = [*tokenizer(whole)["input_ids"], tokenizer.eos_token_id][:LENGTH]
        labels = [-100] * len(prompt) + ids[len(prompt) :]
        expected = slow_scores(model, before, tokenizer, ids, labels)
        assert set(expected) == set(audit.scores)
        for name, score in expected.items():
            assert audit.scores[name][i] == pytest.approx(score, rel=1e-4, abs=1e-4), (name, i)


def test_scores_do_not_depend_on_batches_or_padding(lora, tmp_path):
    one = run(lora, tmp_path / "one", batch_size=1)
    many = run(lora, tmp_path / "many", batch_size=64)
    copy = tmp_path / "left"
    shutil.copytree(lora, copy)
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps({**settings, "padding_side": "left"}))
    assert AutoTokenizer.from_pretrained(copy).padding_side == "left"
    left = run(str(copy), tmp_path / "left-cache", batch_size=16)
    for name, scores in one.scores.items():
        for other in (many, left):
            scale = np.maximum(1, np.abs(scores))  # the error zone divides by sums that may be small
            assert (np.abs(scores - other.scores[name]) / scale).max() < (1e-3 if name == "error_zone" else 1e-5), name


def test_nothing_is_scored_twice(full, base, tmp_path, monkeypatch):
    first = run(full, tmp_path, reference_model=base)
    monkeypatch.setattr(AuditedModel, "_opened", None)
    again = run(full, tmp_path, reference_model=base)
    assert aucs(again) == aucs(first)
    with pytest.raises(TypeError):
        run(full, tmp_path, reference_model=base, layout=SFTFormat(max_length=20))


@dataclass(frozen=True)
class FirstToken(TokenAttack):
    """An attack from outside of the package: the first token's log-probability."""

    scale: float = 1.0
    needs: ClassVar[tuple[str, ...]] = ()

    def score(self, record: TokenRecord) -> float:
        return self.scale * float(record.target.log_probs[0])


def test_an_attack_of_ones_own(lora, tmp_path):
    name = "test_audit_membership:FirstToken"
    audit = run(lora, tmp_path, attacks=["loss", name], attack_kwargs={name: {"scale": 2.0}})
    assert set(audit.scores) == {"loss", name}
    assert (audit.scores[name] < 0).all()
    bad = f"{__name__}:FirstToken"
    with pytest.raises(ValueError, match="returned scores of shape"):
        run(lora, tmp_path, attacks=[bad], attack_kwargs={bad: {"scale": math.nan}})


# ---- sound or not -------------------------------------------------------------------------------------------------


def test_sets_without_a_record_are_stamped(full, tmp_path):
    members, others = records(40, seed=5), records(40, seed=7)
    audit = run(full, tmp_path, members, non_members=others, hold_out=None)
    assert "not in the record" in audit.figures["unsound"]
    copy = tmp_path / "copy"
    shutil.copytree(full, copy)
    shutil.rmtree(copy / "_hold_out")
    audit = run(str(copy), tmp_path, members, non_members=others)
    assert "no record of it was given" in audit.figures["unsound"]
    with pytest.raises(ValueError, match="There is no record of a hold-out beside the model"):
        run(str(copy), tmp_path)
    with pytest.raises(ValueError, match="there is no record of a hold-out in that folder"):
        run(str(copy), tmp_path, hold_out=tmp_path)


def test_named_sides_that_follow_from_the_record_are_sound(full, tmp_path):
    train, held = hold_out(records(260), 60 / 260, id_column="uid")
    assert run(full, tmp_path, train, non_members=held).figures["unsound"] is None
    with pytest.raises(ValueError, match="60 of 60 members are on the other side by the record"):
        run(full, tmp_path, held, non_members=train)


def test_a_planted_shift_is_stamped(full, tmp_path):
    split = hold_out(records(260), 60 / 260, id_column="uid")
    shifted = split.held_out.map(lambda row: {"text": "Note: " + row["text"]})
    audit = run(full, tmp_path, split.train, non_members=shifted)
    assert audit.figures["confounded"]
    assert audit.figures["gate"]["attacks"]["words"]["fires"]


def test_documents_and_samples(full, tmp_path):
    audit = run(full, tmp_path, document_column="ward", max_examples=50)
    assert audit.figures["documents"] == 9
    assert (audit.figures["members"], audit.figures["non_members"]) == (50, 50)
    apart = run(full, tmp_path, max_examples=50)
    assert aucs(apart) == aucs(audit)
    assert apart.figures["documents"] == 100
