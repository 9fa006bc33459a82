"""Recorded Gram matrices against autograd of one row at a time, accumulated in float64, over model families."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from trl.trainer.utils import add_fused_lm_head

from gradient_helpers import FAMILIES, build, check


@pytest.mark.parametrize("fused", [False, True], ids=["plain head", "fused head"])
@pytest.mark.parametrize("family", FAMILIES)
def test_full_fine_tuning(family, fused):
    model = build(family)
    if fused:
        add_fused_lm_head(model)
    check(model, fused)


@pytest.mark.parametrize("mode", ["pairs", "norms"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_fewer_products(family, mode):
    model = build(family)
    add_fused_lm_head(model)
    check(model, fused=True, mode=mode)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant, side):
    model = build("llama")
    add_fused_lm_head(model)
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    check(model, fused=True, side=side)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_lora(family):
    base = build(family)
    add_fused_lm_head(base)
    torch.manual_seed(0)
    targets = ["c_attn", "c_proj", "c_fc"] if family == "gpt2" else "all-linear"
    config = LoraConfig(r=4, target_modules=targets, init_lora_weights=False, fan_in_fan_out=family == "gpt2")
    model = get_peft_model(base, config).eval()
    check(model, fused=True)


@pytest.mark.parametrize("fused", [False, True], ids=["plain head", "fused head"])
@pytest.mark.parametrize("family", ["llama", "llama tied"])
def test_layers_that_peft_trains_in_full(family, fused):
    """`modules_to_save` puts copies inside wrappers, the output head's among them."""
    base = build(family)
    add_fused_lm_head(base)
    torch.manual_seed(0)
    saved = ["embed_tokens", "lm_head", "norm"]
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=saved, init_lora_weights=False)
    check(get_peft_model(base, config).eval(), fused)
