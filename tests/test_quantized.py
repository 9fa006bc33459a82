"""A base quantised to 4 bits, with LoRA: the adapter trains with weights."""

import pytest
import torch
import trl
from peft import LoraConfig
from transformers import BitsAndBytesConfig

import hf_gradkit
from helpers import step_logs, text_dataset, train
from hf_gradkit.data.tiny import tiny_llama

bitsandbytes = pytest.importorskip("bitsandbytes", reason='needs pip install "hf-gradkit[quantization]"')


def run(trainer, config, tokenizer, tmp_path, name, **options):
    keywords = {
        "model": str(tmp_path / "model"),
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        ),
        "peft_config": LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
    }
    return train(trainer, config, tokenizer, tmp_path / name, text_dataset(), trainer_kwargs=keywords, **options)


def test_quantized_base_with_lora(tokenizer, tmp_path):
    tiny_llama(tokenizer, hidden_size=64).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    strong = {"temperature": 0.4, "warmup_ratio": 0.0}
    ours = (hf_gradkit.SFTTrainer, hf_gradkit.SFTConfig, tokenizer, tmp_path)
    theirs = run(trl.SFTTrainer, trl.SFTConfig, tokenizer, tmp_path, "trl")
    off = run(*ours, "off")
    flat = run(*ours, "flat", weighting="linupper", weighting_kwargs={**strong, "temperature": 1e9})
    weighted = run(*ours, "weighted", weighting="linupper", weighting_kwargs=strong)
    layer = weighted.model.base_model.model.model.layers[0].self_attn.k_proj
    assert isinstance(layer, bitsandbytes.nn.Linear4bit)
    assert step_logs(theirs, "loss") == step_logs(off, "loss")
    assert step_logs(theirs, "loss") == pytest.approx(step_logs(flat, "loss"), rel=1e-5)
    assert step_logs(weighted, "weights/max")[0] > 1.3
    moved = [
        name
        for (name, a), (_, b) in zip(off.model.named_parameters(), weighted.model.named_parameters(), strict=True)
        if not torch.equal(a, b)
    ]
    assert moved
    assert all("lora_" in name for name in moved)
