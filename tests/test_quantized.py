"""A base quantised to 4 bits, with LoRA: the adapter trains with weights."""

import pytest
import torch
import trl
from peft import LoraConfig
from transformers import BitsAndBytesConfig

import hf_gradkit
from helpers import step_logs, text_dataset, train
from hf_gradkit.data.tiny import tiny_llama
from hf_gradkit.gradients import record_gradients

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


def test_gradients_of_an_adapter_on_a_quantized_base(tokenizer, tmp_path):
    """The recorder sees the adapter, exactly: one row at a time is the oracle."""
    tiny_llama(tokenizer, hidden_size=64).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    trainer = run(trl.SFTTrainer, trl.SFTConfig, tokenizer, tmp_path, "trl", learning_rate=0.5)
    model = trainer.model.eval().float()
    batch = {k: v for k, v in next(iter(trainer.get_train_dataloader())).items() if k in ("input_ids", "labels")}
    rows = []
    for row in range(4):
        model.zero_grad()
        one = {name: value[[row]] for name, value in batch.items()}
        model(**one, fused_lm_head=True).log_probs.sum().backward()
        rows.append(torch.cat([p.grad.double().flatten() for p in model.parameters() if p.requires_grad]))
    expected = torch.stack(rows) @ torch.stack(rows).T
    model.zero_grad()
    with record_gradients(model) as recorder:
        model(**batch, fused_lm_head=True).log_probs.sum().backward()
    assert recorder.coverage == 1.0
    norms = expected.diagonal().sqrt()
    assert norms.min() > 0
    assert ((recorder.gram().double() - expected).abs() / (norms[:, None] * norms)).max() < 1e-3
