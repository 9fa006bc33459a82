"""A process's own gradients, seen before they are reduced: those of `.grad` on one process, of any model."""

from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model

from gradient_helpers import FAMILIES, build, make_batch, row_losses
from hf_gradkit import _compat
from hf_gradkit.gradients import record_gradients
from hf_gradkit.gradients.own import own_gradients
from launch import CONFIGS, launch

WORKER = Path(__file__).parent / "workers" / "own_gradient_cases.py"


def backward(model, **forward):
    inputs, labels, _ = make_batch()
    row_losses(model, inputs, labels, **{"fused": False, **forward}).sum().backward()


def assert_seen(model, seen):
    """Each trainable parameter's gradient was seen, once."""
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert seen.keys() == expected.keys()
    for name, gradients in seen.items():
        (gradient,) = gradients
        assert torch.equal(gradient, expected[name]), name


def collect():
    seen = {}
    return seen, lambda name, gradient: seen.setdefault(name, []).append(gradient.clone())


@pytest.mark.parametrize("family", list(FAMILIES))
def test_they_are_those_of_the_backward_pass(family):
    model, (seen, see) = build(family), collect()
    with own_gradients(model, see):
        backward(model)
    assert_seen(model, seen)
    backward(model)  # of which nothing is seen any more
    assert all(len(gradients) == 1 for gradients in seen.values())


def test_beside_a_recorder_under_checkpointing():
    model, (seen, see) = build("llama tied"), collect()
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    with record_gradients(model, mode="norms") as recorder, own_gradients(model, see):
        backward(model)
    assert_seen(model, seen)
    assert recorder.norms().isfinite().all()


def test_of_adapters_alone():
    model = get_peft_model(build("llama"), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    seen, see = collect()
    with own_gradients(model, see):
        backward(model)
    assert_seen(model, seen)
    assert all("lora_" in name for name in seen)


def test_several_stand_in_for_the_fused_head_and_end_in_any_order():
    import trl.trainer.utils as utils

    original, called = utils._ChunkedLogProbFunction, []

    def standing(name):
        def replace(before):
            class Stand:
                @staticmethod
                def apply(value):
                    called.append(name)
                    return before if before is original else before.apply(value)

            return Stand

        return replace

    first, second = _compat.fused_head(standing("first")), _compat.fused_head(standing("second"))
    first.__enter__()
    second.__enter__()
    assert utils._ChunkedLogProbFunction.apply(1) is original
    first.__exit__(None, None, None)
    assert utils._ChunkedLogProbFunction.apply(1) is original
    assert called == ["second", "first", "second"]
    second.__exit__(None, None, None)
    assert utils._ChunkedLogProbFunction is original


@pytest.mark.multiprocess
def test_whatever_fsdp2_wraps(tmp_path):
    """The mean over the processes of what each saw is what `.grad` holds, of a head that TRL gathers as well."""
    gathered = yaml.safe_load((CONFIGS / "cpu/fsdp2.yaml").read_text())
    gathered["fsdp_config"]["fsdp_transformer_layer_cls_to_wrap"] = "LlamaDecoderLayer,Linear"
    (tmp_path / "gathered.yaml").write_text(yaml.safe_dump(gathered))
    reference = {}
    for config, kinds in (("cpu/fsdp2", ["tied", "untied"]), (str(tmp_path / "gathered"), ["untied"])):
        launched = launch(WORKER, [str(tmp_path), *kinds], config=config)
        launched.assert_backend("fsdp2")
        for kind in kinds:
            seen, grads = (torch.load(tmp_path / f"{name}-{kind}.pt", weights_only=True) for name in ("seen", "grads"))
            assert len(grads) == 21 - (kind == "tied")
            # Of a head that it gathers, TRL 1.16 leaves each process its own gradient: that one is not the mean.
            reference = grads if config == "cpu/fsdp2" else reference
            assert seen.keys() == reference.keys()
            for name, gradient in reference.items():
                torch.testing.assert_close(seen[name], gradient, rtol=1e-5, atol=1e-8)
