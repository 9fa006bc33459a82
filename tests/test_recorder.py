"""The recorder: packed rows, precision, what it names as missing, and what it refuses."""

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from trl.trainer.utils import add_fused_lm_head

from gradient_helpers import SMALL, assert_gram, build, check, make_batch, oracle, row_losses
from hf_gradkit.gradients import GradientRecordError, record_gradients
from hf_gradkit.gradients.sharing import shared_recorder


def recorded(model, mode="gram", fused=True, **keywords):
    inputs, labels, coefficients = make_batch()
    model.zero_grad()
    with record_gradients(model, mode=mode, **keywords) as recorder:
        (coefficients * row_losses(model, inputs, labels, fused)).sum().backward()
    return recorder


def fused_llama(family="llama"):
    model = build(family)
    add_fused_lm_head(model)
    return model


def test_each_forward_begins_a_new_record():
    """Accumulation: every micro-batch its own record, and `.grad` adds up as always."""
    model = fused_llama()
    inputs, labels, coefficients = make_batch()
    with record_gradients(model) as recorder:
        (coefficients * row_losses(model, inputs, labels, True)).sum().backward()
        first = recorder.gram()
        (2 * coefficients * row_losses(model, inputs, labels, True)).sum().backward()
        assert torch.allclose(recorder.gram(), 4 * first, rtol=1e-4)
    alone = fused_llama()
    (3 * coefficients * row_losses(alone, inputs, labels, True)).sum().backward()
    for (name, p), q in zip(model.named_parameters(), alone.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, rtol=1e-3, atol=1e-6), name


def test_a_backward_after_the_context_is_recorded_yet():
    model = fused_llama()
    inputs, labels, coefficients = make_batch()
    expected = recorded(model).gram()
    with record_gradients(model) as recorder:
        loss = (coefficients * row_losses(model, inputs, labels, True)).sum()
    loss.backward()
    assert torch.equal(recorder.gram(), expected)
    row_losses(model, inputs, labels, True).sum().backward()  # not recorded any more
    assert torch.equal(recorder.gram(), expected)


def test_packed_rows():
    """Two documents and padding in one flattened row: each document is a row, and attends to itself alone."""
    model = build("llama")
    model.set_attn_implementation("sdpa")
    add_fused_lm_head(model)
    inputs, labels, coefficients = make_batch()
    lengths = [7, 9]
    rows = [inputs["input_ids"][1, :7], inputs["input_ids"][2, :9]]
    of_rows = [labels[1, :7].clone(), labels[2, :9].clone()]
    grams = []
    for ids, target, c in zip(rows, of_rows, coefficients[1:3], strict=True):
        model.zero_grad()
        (c * row_losses(model, {"input_ids": ids[None]}, target[None], True)).sum().backward()
        grams.append(torch.cat([p.grad.double().flatten() for p in model.parameters()]))
    expected = torch.stack(grams) @ torch.stack(grams).T

    flat = {"input_ids": torch.cat([*rows, torch.zeros(2, dtype=torch.long)])[None]}
    positions = torch.cat([torch.arange(n) for n in (*lengths, 2)])[None]
    segments = torch.tensor([0] * 7 + [1] * 9 + [-1] * 2)
    same = (segments[:, None] == segments) & torch.ones(18, 18, dtype=torch.bool).tril()
    target = torch.cat([*of_rows, torch.full((2,), -100)])[None]
    with record_gradients(model, segments=segments) as recorder:
        out = model(
            **flat,
            position_ids=positions,
            attention_mask=same[None, None],
            labels=target,
            fused_lm_head=True,
            use_cache=False,
        )
        per_token = coefficients[1:3][segments[1:].clamp(min=0)] * out.log_probs[0]
        (-per_token).sum().backward()
    assert_gram(recorder.gram(), expected)


def test_segments_that_do_not_fit():
    with pytest.raises(
        GradientRecordError, match=r"`segments` has shape \(5,\) and the batch 6 row\(s\) of 12 tokens"
    ):
        recorded(fused_llama(), segments=torch.tensor([0, 0, 1, 1, 1]))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_bf16_autocast(family):
    """Norms within 3 %, cosines within .03 of float32's, with float32 sums."""
    model = fused_llama(family)
    inputs, labels, coefficients = make_batch()
    expected, _ = oracle(model, inputs, labels, coefficients, True)
    model.zero_grad()
    with record_gradients(model) as recorder:
        with torch.autocast("cpu", torch.bfloat16):
            losses = row_losses(model, inputs, labels, True)
        (coefficients * losses).sum().backward()
    norms = expected.diagonal().sqrt()
    assert torch.allclose(recorder.norms().double(), norms, rtol=0.03)
    cosine = recorder.gram().double() / (recorder.norms()[:, None] * recorder.norms())
    assert (cosine - expected / (norms[:, None] * norms)).abs().max() < 0.03
    assert model.lm_head.weight.grad.dtype == torch.float32


def test_a_reference_forward_in_between_changes_nothing():
    """DPO with LoRA runs the same modules for policy and reference."""
    base = fused_llama()
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).eval()
    inputs, labels, coefficients = make_batch()
    expected, _ = oracle(model, inputs, labels, coefficients, True)
    model.zero_grad()
    with record_gradients(model) as recorder:
        losses = row_losses(model, inputs, labels, True)
        with torch.no_grad(), model.disable_adapter():
            row_losses(model, inputs, labels, True)
        (coefficients * losses).sum().backward()
    assert_gram(recorder.gram(), expected)


def test_a_part_of_the_parameters():
    model = fused_llama()
    names = [name for name, _ in model.named_parameters() if "layers.1.mlp" in name]
    everything = recorded(model)
    part = recorded(model, parameters=names)
    assert sorted(part.tally.names()) == sorted(names)
    assert torch.allclose(part.gram(), everything.gram(names), rtol=1e-4)
    by_function = recorded(model, parameters=lambda name: "layers.1.mlp" in name)
    assert torch.allclose(by_function.gram(), part.gram())
    assert set(everything.layer_norms()) == {name for name, _ in model.named_parameters()}
    squares = torch.stack(list(everything.layer_norms().values())).square().sum(0)
    assert torch.allclose(squares.sqrt(), everything.norms(), rtol=1e-5)


def test_experts_of_a_mixture_are_named():
    """Experts whose weights are one 3-D parameter cannot be recorded: they are named and counted."""
    config = transformers.MixtralConfig(**{**SMALL, "num_local_experts": 4})
    torch.manual_seed(0)
    model = transformers.MixtralForCausalLM(config).eval()
    add_fused_lm_head(model)
    with record_gradients(model) as recorder:
        pass
    assert recorder.uncovered
    assert all("mlp" in name for name in recorder.uncovered)
    missing = sum(p.numel() for name, p in model.named_parameters() if name in recorder.uncovered)
    total = sum(p.numel() for p in model.parameters())
    assert recorder.coverage == pytest.approx(1 - missing / total)
    assert 0 < recorder.coverage < 1


def test_a_parameter_of_an_unknown_layer_is_named():
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(32, 32))

        def forward(self, x):
            return x @ torch.linalg.matrix_exp(0.01 * self.weight)

    model = fused_llama()
    model.model.norm = torch.nn.Sequential(model.model.norm, Odd())
    recorder = recorded(model)
    assert recorder.uncovered == ["model.norm.1.weight"]


# ---- errors ---------------------------------------------------------------------------------------------------------


def test_a_gradient_from_outside_of_its_layer_is_named():
    """A layer whose weight is used directly looks like any other, until its gradient comes."""

    class Direct(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(11, 4)
            self.layer = torch.nn.Linear(4, 3)

        def forward(self, input_ids):
            x = self.embedding(input_ids)
            return torch.nn.functional.linear(x, self.layer.weight) + self.layer.bias

    ids = torch.randint(0, 11, (2, 5))
    model = Direct()
    with record_gradients(model, projections=8) as recorder:
        model(ids).square().mean().backward()
        assert recorder.uncovered == []
        for read in (recorder.gram, recorder.norms, recorder.projections):
            with pytest.raises(
                GradientRecordError, match=r"'layer\.bias', 'layer\.weight' got a gradient from outside"
            ):
                read()
    assert not any(p._backward_hooks for p in model.parameters())
    with record_gradients(model, parameters=["embedding.weight"]) as recorder:
        model(ids).square().mean().backward()
        assert recorder.gram().shape == (2, 2)


def test_nothing_to_record():
    model = fused_llama()
    model.requires_grad_(False)
    with pytest.raises(GradientRecordError, match="No parameter was asked for that requires a gradient"):
        recorded(model)
    model.requires_grad_(True)
    with pytest.raises(ValueError, match=r"names 'model.nothing', which is not a trainable parameter"):
        recorded(model, parameters=["model.nothing"])
    with pytest.raises(ValueError, match=r"`mode` must be one of .* but it is 'all'"):
        recorded(model, mode="all")
    with pytest.raises(ValueError, match="`parameters` must be 'trainable'"):
        recorded(model, parameters="everything")


def test_no_layer_that_can_be_recorded():
    model = fused_llama()
    model.requires_grad_(False)
    model.model.norm = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(32, 32, bias=False))
    with pytest.raises(GradientRecordError, match=r"None of the .* parameters asked for can be recorded"):
        recorded(model)


def test_a_forward_without_gradient():
    model = fused_llama()
    inputs, labels, _ = make_batch()
    with record_gradients(model) as recorder, torch.no_grad():
        row_losses(model, inputs, labels, True)
    with pytest.raises(GradientRecordError, match="No gradient was recorded"):
        recorder.gram()


def test_products_that_were_not_kept():
    with pytest.raises(GradientRecordError, match="`mode` is 'pairs', which keeps no Gram matrix"):
        recorded(fused_llama(), mode="pairs").gram()
    with pytest.raises(GradientRecordError, match="Pairs of rows need mode 'pairs' or 'gram'"):
        recorded(fused_llama(), mode="norms").pair_products()


def test_two_forwards_before_a_backward():
    model = fused_llama()
    inputs, labels, coefficients = make_batch()
    with record_gradients(model) as recorder:
        losses = row_losses(model, inputs, labels, True) + row_losses(model, inputs, labels, True)
        (coefficients * losses).sum().backward()
    with pytest.raises(GradientRecordError, match="was used more than once before the backward pass"):
        recorder.gram()


def test_a_gradient_that_is_not_finite_names_row_and_layer():
    model = fused_llama()
    inputs, labels, coefficients = make_batch()
    coefficients = coefficients.clone()
    coefficients[4] = float("inf")
    with record_gradients(model) as recorder:
        (coefficients * row_losses(model, inputs, labels, True)).sum().backward()
    with pytest.raises(GradientRecordError, match=r"row\(s\) .*4.* is not finite, first in 'lm_head.weight'"):
        recorder.norms()


def test_a_compiled_model_is_refused():
    model = fused_llama()
    with pytest.raises(GradientRecordError, match="The model is compiled"), record_gradients(torch.compile(model)):
        pass
    model.model.layers[0].compile()
    with pytest.raises(GradientRecordError, match="The model is compiled"), record_gradients(model):
        pass


def test_a_model_without_token_ids():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3))
    with record_gradients(model), pytest.raises(GradientRecordError, match="without `input_ids` or `inputs_embeds`"):
        model(torch.randn(3))


def test_everything_is_taken_off_again():
    from trl.trainer import utils

    model, function = fused_llama(), utils._ChunkedLogProbFunction
    before = {name: type(m).forward for name, m in model.named_modules()}
    with record_gradients(model):
        assert utils._ChunkedLogProbFunction is not function
        assert "forward" in vars(model.model.layers[0].mlp.up_proj)
    assert utils._ChunkedLogProbFunction is function
    assert not any("forward" in vars(m) for name, m in model.named_modules() if name)
    assert before == {name: type(m).forward for name, m in model.named_modules()}
    check(model, fused=True)


def test_a_shared_recorder_keeps_what_the_most_demanding_asks_for():
    """Whoever comes first; and the documents of a flattened batch stay its rows."""
    model = build("llama")
    ids, positions = torch.arange(1, 10)[None], torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    with (
        shared_recorder(model, "gram", projections=4, documents=True) as recorder,
        shared_recorder(model, "norms") as other,
    ):
        assert other is recorder
        assert recorder.is_shared
        model(input_ids=ids, position_ids=positions, use_cache=False).logits.square().mean().backward()
        assert recorder.gram().shape == (2, 2)
        assert recorder.projections().shape == (2, 4)
        with pytest.raises(ValueError, match="4 projections of seed 0 already"):
            shared_recorder(model, "norms", projections=8).__enter__()
    assert "forward" not in vars(model.model.layers[0].mlp.up_proj)
