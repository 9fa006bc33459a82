"""Grad-Cos and TracIn from projections, against gradients by autograd, one example at a time."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import LlamaForCausalLM

from difficulty_helpers import plain_log_probs, sft_data
from hf_gradkit.reporting.selection import render
from hf_gradkit.scoring import SFTFormat, tokenize_sft
from hf_gradkit.selection import GradCos
from hf_gradkit.selection.difficulty import UNLABELLED
from pair_helpers import save_policy

N, TARGETS = 12, 5


@pytest.fixture(scope="module")
def data():
    return sft_data("prompt-completion", N)


@pytest.fixture(scope="module")
def target():
    return sft_data("prompt-completion", N + TARGETS).select(range(N, N + TARGETS))


@pytest.fixture(scope="module")
def checkpoints(policy, tokenizer, tmp_path_factory):
    return [policy, save_policy(tmp_path_factory.mktemp("later"), tokenizer, seed=7)]


def gradients(model: str, dataset: Dataset, tokenizer) -> np.ndarray:
    """The gradient of each example's mean loss, all parameters one after the other, in float64. (n, p)"""
    model, found = LlamaForCausalLM.from_pretrained(model).double(), []
    for row in tokenize_sft(dataset, tokenizer, SFTFormat()):
        model.zero_grad()
        log_p, labels = plain_log_probs(model, row)
        (-log_p[torch.arange(len(labels)), labels].mean()).backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]).numpy())
    return np.stack(found)


def exact(models, data, target, tokenizer, rates=(1.0, 1.0)) -> dict[str, np.ndarray]:
    total = {"tracin": 0, "grad_cos": 0, "norms": []}
    for model, rate in zip(models, rates, strict=False):
        a, b = gradients(model, data, tokenizer), gradients(model, target, tokenizer)
        length = np.linalg.norm(a, axis=1)
        total["tracin"] = total["tracin"] + rate * (a @ b.T).mean(1)
        unit_a, unit_b = a / length[:, None], b / np.linalg.norm(b, axis=1, keepdims=True)
        total["grad_cos"] = total["grad_cos"] + rate * (unit_a @ unit_b.T).mean(1)
        total["norms"].append(length)
    return total


def test_influence_of_one_model(data, target, policy, tokenizer, tmp_path):
    expected = exact([policy], data, target, tokenizer)
    options = {"target": target, "projections": 8192, "cache_folder": tmp_path, "count": 4}
    result = GradCos(model=policy, **options).select(data)
    error = result.report["influence"]["standard_error"]
    assert 0 < error < 3 / np.sqrt(8192)
    assert result.scores["grad_cos"] == pytest.approx(expected["grad_cos"].tolist(), abs=5 * error)
    differences = np.array(result.scores["grad_cos"]) - expected["grad_cos"]
    assert np.sqrt((differences**2).mean()) < 2 * error  # the error that is reported is the error
    assert result.scores["gradient_norm"] == pytest.approx(expected["norms"][0].tolist(), rel=1e-3)
    assert np.corrcoef(result.scores["tracin"], expected["tracin"])[0, 1] > 0.95
    assert result.kept.tolist() == sorted(np.argsort(-np.array(result.scores["grad_cos"]))[:4].tolist())
    by_product = GradCos(model=policy, measure="inner_product", **options).select(data)
    assert by_product.scores["score"] == by_product.scores["tracin"]
    assert json.loads(json.dumps(result.report))["options"]["target"] == "a data set of 5 rows"
    assert "Rank correlations of the influence on 5 target examples: grad_cos" in render(result.report, result.scores)
    said = result.report["influence"]["correlation"]
    assert set(said) == {"grad_cos", "tracin"}
    ranks = [np.argsort(np.argsort(values)) for values in (result.scores["tracin"], expected["norms"][0])]
    assert said["tracin"]["gradient_norm"] == pytest.approx(np.corrcoef(*ranks)[0, 1])


def test_influence_over_checkpoints(data, target, checkpoints, tokenizer, tmp_path):
    rates = [0.5, 2.0]
    expected = exact(checkpoints, data, target, tokenizer, rates)
    options = {"target": target, "projections": 4096, "learning_rates": rates, "cache_folder": tmp_path}
    result = GradCos(model=checkpoints, fraction=0.5, **options).select(data)
    error = result.report["influence"]["standard_error"]
    assert result.scores["grad_cos"] == pytest.approx(expected["grad_cos"].tolist(), abs=5 * error)
    assert result.scores["gradient_norm"] == pytest.approx(np.mean(expected["norms"], axis=0).tolist(), rel=1e-3)


def test_learning_rates_as_small_as_they_are(data, target, policy, tmp_path):
    """They are the unit of the score, and the highest scores stay the highest."""
    options = {"model": policy, "target": target, "cache_folder": tmp_path, "count": 4}
    result = GradCos(learning_rates=[1e-6], **options).select(data)
    assert result.kept.tolist() == GradCos(**options).select(data).kept.tolist()
    assert result.kept.tolist() == sorted(np.argsort(-np.array(result.scores["score"]))[:4].tolist())


def test_examples_that_are_targets_are_found(data, policy, tmp_path):
    """An example's cosine with itself is 1, so it beats the others."""
    options = {"projections": 2048, "cache_folder": tmp_path, "count": 1}
    for row in (2, 7):
        assert GradCos(model=policy, target=data.select([row]), **options).select(data).kept.tolist() == [row]


def test_a_target_in_a_file_and_examples_without_labels(data, target, policy, tmp_path):
    target.to_json(str(tmp_path / "target.jsonl"))
    rows = data.to_list()
    rows[3]["prompt"] = " the cat" * 30
    options = {"target": str(tmp_path / "target.jsonl"), "max_length": 24, "cache_folder": tmp_path / "cache"}
    result = GradCos(model=policy, fraction=0.5, **options).select(Dataset.from_list(rows))
    assert result.scores["ruled_out"][3] == UNLABELLED
    assert 3 not in result.kept


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "t"}, "The selector 'grad_cos' needs a `model`, or a list of them, but it is None"),
        ({"model": "m"}, "needs a `target` among its options"),
        ({"model": "m", "target": "t", "measure": "cos"}, "`measure` is 'cos'"),
        (
            {"model": ["a", "b"], "target": "t", "learning_rates": [1]},
            "`learning_rates` has 1 values for 2 checkpoints",
        ),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        GradCos(fraction=0.5, **options)
