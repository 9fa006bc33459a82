"""Seeded projections of rows' gradients: exactly the probes' products, and unbiased inner products."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from trl.trainer.utils import add_fused_lm_head

from gradient_helpers import R, assert_gram, build, make_batch, oracle, row_losses
from hf_gradkit.gradients import GradientRecordError, record_gradients
from hf_gradkit.gradients.projections import estimate, signs

K = 16


def probed(model, gradients):
    """What `K` probes of seed 3 see of each parameter's gradients, matrices and all. name -> (R, ...); (R, K)"""
    total = torch.zeros(R, K, dtype=torch.float64)
    transposed = {f"{name}.weight" for name, module in model.named_modules() if type(module).__name__ == "Conv1D"}
    for name, g in gradients.items():
        g = g.double().transpose(1, 2) if name in transposed else g.double()
        if g.dim() == 2:
            total += g @ signs(name, "w", g.shape[1], K, 3).double()
        else:
            u, v = (signs(name, side, size, K, 3).double() for side, size in zip("uv", g.shape[1:], strict=True))
            total += torch.einsum("roi,ok,ik->rk", g, u, v)
    return total / K**0.5


def rows_of_parameters(model, inputs, labels, coefficients, fused):
    gradients = {name: [] for name, p in model.named_parameters() if p.requires_grad}
    for i in range(R):
        model.zero_grad()
        one = {key: value[i : i + 1] for key, value in inputs.items()}
        (coefficients[i] * row_losses(model, one, labels[i : i + 1], fused)).sum().backward()
        for name, p in model.named_parameters():
            if p.requires_grad:
                gradients[name].append(torch.zeros_like(p) if p.grad is None else p.grad.clone())
    return {name: torch.stack(values) for name, values in gradients.items()}


def assert_probed(model, fused, mode):
    inputs, labels, coefficients = make_batch()
    expected = probed(model, rows_of_parameters(model, inputs, labels, coefficients, fused))
    gram, summed = oracle(model, inputs, labels, coefficients, fused)
    model.zero_grad()
    with record_gradients(model, mode=mode, projections=K, seed=3) as recorder:
        (coefficients * row_losses(model, inputs, labels, fused)).sum().backward()
    found = recorder.projections()
    assert found.shape == (R, K)
    error = ((found.double() - expected).norm(dim=1) / expected.norm(dim=1)).max().item()
    assert error < 1e-4
    trained = [p.grad.double().flatten() for p in model.parameters() if p.requires_grad and p.grad is not None]
    assert torch.allclose(torch.cat(trained), summed, rtol=1e-4, atol=1e-5 * summed.abs().max().item())
    if mode == "gram":
        assert_gram(recorder.gram(), gram)
    else:
        with pytest.raises(GradientRecordError, match="keeps no Gram"):
            recorder.gram()


@pytest.mark.parametrize("mode", ["projections", "gram"])
@pytest.mark.parametrize("fused", [False, True], ids=["plain head", "fused head"])
@pytest.mark.parametrize("family", ["llama with biases", "qwen3", "gemma3", "gpt2", "phi"])
def test_projections_are_what_the_probes_see_of_each_row(family, fused, mode):
    model = build(family)
    if fused:
        add_fused_lm_head(model)
    assert_probed(model, fused, mode)


def test_of_lora_factors():
    base = build("llama")
    add_fused_lm_head(base)
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).eval()
    assert_probed(model, True, "projections")


def test_of_a_flattened_batch():
    model = build("llama")
    torch.manual_seed(0)
    ids = torch.randint(1, 97, (1, 12))
    segments = torch.tensor([0] * 5 + [1] * 4 + [-1] * 3)

    def record(mode):
        model.zero_grad()
        with record_gradients(model, mode=mode, segments=segments, projections=4000) as recorder:
            logits = model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
            logits[torch.arange(8), ids[0, 1:9]].sum().backward()
        return recorder

    recorder = record("gram")
    value, error = estimate(*recorder.projections())
    assert (value - recorder.gram()[0, 1]).abs() < 4 * error
    assert torch.equal(record("projections").projections(), recorder.projections())


def test_inner_products_are_unbiased_and_the_error_is_stated():
    """Over 200 seeds of 8 probes: the mean is the product, and the stated error is the spread."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 6), nn.Linear(6, 5))
    ids = torch.randint(0, 20, (2, 3))

    def record(seed):
        model.zero_grad()
        with record_gradients(model, projections=8, seed=seed) as recorder:
            model(ids).square().sum().backward()
        return recorder

    exact = record(0).gram()[0, 1].item()
    found = torch.tensor([[float(x) for x in estimate(*record(seed).projections())] for seed in range(200)])
    spread = found[:, 0].std().item()
    assert abs(found[:, 0].mean().item() - exact) < 4 * spread / 200**0.5
    assert found[:, 1].square().mean().sqrt().item() == pytest.approx(spread, rel=0.25)


def test_signs_follow_from_name_side_and_seed():
    drawn = signs("layer.weight", "u", 500, 8, 0)
    assert set(drawn.unique().tolist()) == {-1, 1}
    assert torch.equal(drawn, signs("layer.weight", "u", 500, 8, 0))
    for other in (
        signs("layer.weight", "v", 500, 8, 0),
        signs("x", "u", 500, 8, 0),
        signs("layer.weight", "u", 500, 8, 1),
    ):
        assert (drawn * other).float().mean().abs() < 0.1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "projections"}, "needs their number"),
        ({"projections": 1}, "whole number of at least 2"),
        ({"projections": 2.5}, "whole number of at least 2"),
    ],
    ids=str,
)
def test_wrong_options_say_so(options, words):
    with pytest.raises(ValueError, match=words), record_gradients(nn.Linear(2, 2), **options):
        pass


def test_without_projections_there_are_none():
    model = nn.Sequential(nn.Embedding(5, 2), nn.Linear(2, 2))
    with record_gradients(model) as recorder:
        model(torch.tensor([[1, 2]])).sum().backward()
        with pytest.raises(GradientRecordError, match="ask for them with `projections`"):
            recorder.projections()


def test_a_row_that_is_not_finite_is_named():
    model = nn.Sequential(nn.Embedding(5, 2), nn.Linear(2, 2))
    with record_gradients(model, mode="projections", projections=4) as recorder:
        (model(torch.tensor([[1, 2], [3, 4]])).sum((1, 2)) * torch.tensor([1.0, float("inf")])).sum().backward()
        with pytest.raises(GradientRecordError, match=r"row\(s\) \[1\]"):
            recorder.projections()
