"""Attacks on gradients, against autograd on one text at a time in float64; and supervised ones, cross-fitted."""

import copy

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from audit_helpers import LENGTH, memorise, record_tokenizer, records, save_base
from hf_gradkit.audit import audit_membership
from hf_gradkit.audit.attacks import FeatureRecord, GradientNorm, StepRatio, Supervised
from hf_gradkit.audit.evaluation import auc, null_error
from hf_gradkit.audit.gradient_records import part_of, score_gradients
from hf_gradkit.audit.models import AuditedModel
from hf_gradkit.callbacks.privacy_audit import PrivacyAuditCallback
from hf_gradkit.scoring import SFTFormat, tokenize_sft
from hf_gradkit.scoring.language_models import load_language_model

LAYOUT = SFTFormat(max_length=LENGTH)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The folders of a base model, and of models that have memorised records, full and LoRA."""
    folder = tmp_path_factory.mktemp("gradients")
    base = save_base(folder, record_tokenizer(), steps=60)
    tokenizer = AutoTokenizer.from_pretrained(base)
    return {
        "base": base,
        "full": memorise(base, folder / "full", tokenizer, rows=120, held=40),
        "lora": memorise(base, folder / "lora", tokenizer, lora=True, rows=120, held=40, num_train_epochs=4),
    }


def slow(model: torch.nn.Module, ids: np.ndarray) -> tuple[float, dict[str, torch.Tensor]]:
    """Return loss and gradient of one text, from the logits, in float64."""
    given = torch.from_numpy(ids)[None]
    loss = torch.nn.functional.cross_entropy(model(given).logits[0, :-1], given[0, 1:])
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return loss.item(), dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("eta", [None, 1e-2])
def test_norms_and_step(kind, eta, models, tmp_path):
    rows = tokenize_sft(records(6), AutoTokenizer.from_pretrained(models["base"]), LAYOUT)
    found, features = score_gradients(AuditedModel(models[kind]), rows, tmp_path, batch_size=4, eta=eta)
    model = load_language_model(models[kind], trainable=True).double()
    assert features.shape == (6, sum(p.requires_grad for p in model.parameters()))
    for i, (row, record) in enumerate(zip(rows, found, strict=True)):
        loss, gradients = slow(model, row.input_ids)
        assert record.loss == pytest.approx(loss, rel=1e-4)
        whole = torch.cat([g.flatten() for g in gradients.values()])
        assert GradientNorm().score(record) == pytest.approx(-whole.norm().item(), rel=1e-4)
        layer = torch.cat([g.flatten() for name, g in gradients.items() if ".layers.1." in name])
        assert GradientNorm(part="layer 1").score(record) == pytest.approx(-layer.norm().item(), rel=1e-4)
        assert features[i].sum() == pytest.approx(sum(g.norm().log().item() for g in gradients.values()), abs=1e-2)
        if kind == "full":
            table = next(g for name, g in gradients.items() if "embed_tokens" in name)
            assert GradientNorm(part="embeddings").score(record) == pytest.approx(-table.norm().item(), rel=1e-4)
        if eta is None:
            continue
        assert GradientNorm(p="1").score(record) == pytest.approx(-whole.abs().sum().item(), rel=1e-4)
        assert GradientNorm(p="inf").score(record) == pytest.approx(-whole.abs().max().item(), rel=1e-4)
        stepped = copy.deepcopy(model)
        with torch.no_grad():
            for name, p in stepped.named_parameters():
                if p.requires_grad:
                    p.sub_(eta * gradients[name])
        expected = slow(stepped, row.input_ids)[0] / loss
        assert StepRatio(eta).score(record) == pytest.approx(expected, abs=1e-4)
        assert expected < 1 - 1e-4


def test_the_model_is_restored_exactly(models, tmp_path):
    model = load_language_model(models["full"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = tokenize_sft(records(4), AutoTokenizer.from_pretrained(models["base"]), LAYOUT)
    score_gradients(AuditedModel(model), rows, tmp_path, 2, eta=0.1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(ValueError, match=r"The model's weights are torch.bfloat16, in which a step of 0.1 is lost"):
        score_gradients(AuditedModel(model.bfloat16()), rows, tmp_path, 2, eta=0.1)


def test_the_whole_audit(models, tmp_path):
    names = ["loss", "gradient_norm", "step_ratio", "supervised"]
    audit = audit_membership(
        models["full"], records(120), layout=LAYOUT, attacks=names, bootstrap_rounds=50, cache_folder=tmp_path,
        attack_kwargs={"step_ratio": {"eta": 1e-3}},
    )  # fmt: skip
    found = {name: figures["auc"] for name, figures in audit.figures["attacks"].items()}
    assert found["gradient_norm"] > 0.9
    assert abs(found["step_ratio"] - 0.5) > 0.3
    assert found["supervised"] > 0.8
    again = audit_membership(
        models["full"], records(120), layout=LAYOUT, attacks=["gradient_norm"], bootstrap_rounds=50,
        cache_folder=tmp_path, batch_size=3,
    )  # fmt: skip
    assert np.abs(again.scores["gradient_norm"] - audit.scores["gradient_norm"]).max() < 1e-4
    default = audit_membership(models["full"], records(120), layout=LAYOUT, bootstrap_rounds=5, cache_folder=tmp_path)
    assert "gradient_norm" not in default.scores


@pytest.mark.parametrize("model", ["logistic", "mlp"])
def test_a_classifier_finds_what_there_is_and_no_more(model):
    rng = np.random.default_rng(0)
    members = rng.permutation(200) < 100
    noise = rng.normal(size=(200, 6))
    documents = np.arange(200)
    nothing = Supervised(model)(FeatureRecord(noise, members, documents, 0))
    assert abs(auc(nothing, members) - 0.5) < 4 * null_error(100, 100)
    told = noise + 1.5 * members[:, None] * np.array([1, 0, 0, 1, 0, 0])
    assert auc(Supervised(model)(FeatureRecord(told, members, documents, 0)), members) > 0.85


def test_no_example_is_scored_by_a_classifier_that_saw_it():
    """Features that name each document would give all away to a classifier that saw the document's other row."""
    rng = np.random.default_rng(0)
    documents = np.repeat(np.arange(60), 2)
    members = np.repeat(rng.permutation(60) < 30, 2)
    features = np.eye(60)[documents]
    scores = Supervised()(FeatureRecord(features, members, documents, 0))
    assert abs(auc(scores, members) - 0.5) < 4 * null_error(60, 60)
    leaking = Supervised()(FeatureRecord(features, members, np.arange(120), 0))
    assert auc(leaking, members) > 0.7


def test_parts():
    assert part_of("model.layers.12.mlp.up_proj.weight", set()) == "layer 12"
    assert part_of("transformer.h.3.attn.weight", set()) == "layer 3"
    assert part_of("model.embed_tokens.weight", {"model.embed_tokens.weight"}) == "embeddings"
    assert part_of("model.norm.weight", set()) == "rest"


def test_options_that_are_wrong(models, tmp_path):
    for make, message in (
        (lambda: GradientNorm(p="3"), "`p` of GradientNorm must be '1', '2' or 'inf'"),
        (lambda: StepRatio(0), "`eta` of StepRatio must be a number above 0"),
        (lambda: Supervised("svm"), "`model` of Supervised must be 'logistic' or 'mlp'"),
        (lambda: PrivacyAuditCallback(attacks=["gradient_norm"]), "needs a backward pass for each example"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(ValueError, match="`part` of GradientNorm is 'layer 9', and the gradients have the parts"):
        audit_membership(
            models["full"], records(120), layout=LAYOUT, attacks=["gradient_norm"], cache_folder=tmp_path,
            attack_kwargs={"gradient_norm": {"part": "layer 9"}},
        )  # fmt: skip
    assert GradientNorm(p=2).p == "2"
