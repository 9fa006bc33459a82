"""Models of several families, a batch with every trap, and autograd of one row at a time: the recorder's oracle."""

import torch
import transformers

from hf_gradkit.gradients import record_gradients

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "eos_token_id": 0,
    "bos_token_id": None,
}
HEADS = {"head_dim": 8}
GPT = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "eos_token_id": 0}
NEOX = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
FAMILIES = {
    "llama": (transformers.LlamaConfig, {**SMALL, "tie_word_embeddings": False}),
    "llama with biases": (transformers.LlamaConfig, {**SMALL, "attention_bias": True, "mlp_bias": True}),
    "llama tied": (transformers.LlamaConfig, {**SMALL, "tie_word_embeddings": True}),
    "qwen3": (transformers.Qwen3Config, {**SMALL, **HEADS, "tie_word_embeddings": True}),
    "gemma2": (transformers.Gemma2Config, {**SMALL, **HEADS, "query_pre_attn_scalar": 8}),
    "gemma3": (transformers.Gemma3TextConfig, {**SMALL, **HEADS, "query_pre_attn_scalar": 8}),
    "gpt2": (transformers.GPT2Config, GPT),
    "gpt_neox": (transformers.GPTNeoXConfig, NEOX),
    "mistral": (transformers.MistralConfig, SMALL),
    "phi": (transformers.PhiConfig, NEOX),
}
R, T = 6, 12


def build(family: str, dropout: float = 0.0):
    config_class, options = FAMILIES[family]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config_class(**options), attn_implementation="eager")
    with torch.no_grad():  # norms and biases away from ones and zeros
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    return model.eval()


def make_batch(side: str = "right"):
    """Rows of unequal length, padded with the end token, which the rows hold as well."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 97, (R, T), generator=generator)
    ids[:, 3] = ids[0, 3]  # tokens that rows share
    ids[:, 5] = 0
    mask = torch.ones(R, T, dtype=torch.long)
    for row, length in enumerate([12, 7, 9, 12, 6, 10]):
        gone = slice(length, None) if side == "right" else slice(None, T - length)
        mask[row, gone], ids[row, gone] = 0, 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :2] = -100
    coefficients = torch.tensor([0.5, -1.0, 2.0, 0.3, -0.7, 1.1])
    return {"input_ids": ids, "attention_mask": mask}, labels, coefficients


def row_losses(model, inputs, labels, fused):
    """Summed negative log-probability of each row. (r,)"""
    if fused:
        return -model(**inputs, labels=labels, fused_lm_head=True, use_cache=False).log_probs.sum(1)
    logits = model(**inputs, use_cache=False).logits[:, :-1].float()
    target = labels[:, 1:]
    picked = logits.log_softmax(-1).gather(2, target.clamp(min=0)[..., None])[..., 0]
    return -(picked * (target != -100)).sum(1)


def oracle(model, inputs, labels, coefficients, fused):
    """One forward and backward a row; the Gram matrix and the summed gradient."""
    rows = []
    for i in range(len(labels)):
        model.zero_grad()
        one = {key: value[i : i + 1] for key, value in inputs.items()}
        (coefficients[i] * row_losses(model, one, labels[i : i + 1], fused)).sum().backward()
        grads = [p.grad for p in model.parameters() if p.requires_grad]
        rows.append(torch.cat([g.double().flatten() for g in grads if g is not None]))
    stacked = torch.stack(rows)
    return stacked @ stacked.T, stacked.sum(0)


def assert_gram(found, expected, tolerance=1e-4):
    norms = expected.diagonal().sqrt()
    error = ((found.double() - expected).abs() / (norms[:, None] * norms)).max().item()
    assert error < tolerance, f"relative error {error:.2e}"
    assert norms.min() > 1e-3


def summed_gradient(model):
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    return torch.cat([g.double().flatten() for g in grads if g is not None])


def check(model, fused=False, side="right", mode="gram", tolerance=1e-4):
    inputs, labels, coefficients = make_batch(side)
    expected, total = oracle(model, inputs, labels, coefficients, fused)
    model.zero_grad()
    with record_gradients(model, mode=mode) as recorder:
        (coefficients * row_losses(model, inputs, labels, fused)).sum().backward()
    assert recorder.uncovered == []
    assert recorder.coverage == 1.0
    assert torch.allclose(summed_gradient(model), total, rtol=1e-4, atol=1e-5 * total.abs().max().item())
    if mode == "gram":
        assert_gram(recorder.gram(), expected, tolerance)
    assert torch.allclose(recorder.norms().double(), expected.diagonal().sqrt(), rtol=tolerance)
    if mode != "norms":
        half = R // 2
        norms = expected.diagonal().sqrt()
        error = (recorder.pair_products().double() - expected[:half, half:].diagonal()).abs()
        assert (error / (norms[:half] * norms[half:])).max() < tolerance
