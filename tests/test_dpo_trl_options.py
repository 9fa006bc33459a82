"""TRL's own options beside ours: ones through our code against TRL, with each of them."""

import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from peft import LoraConfig, PromptTuningConfig

from helpers import parameter_gap, step_logs
from pair_helpers import OURS, THEIRS, pairs, train_dpo


@pytest.fixture
def data():
    return pairs(26, "reward_margin", "weight", "source", "uid")


def test_lora_with_the_adapter_switched_off_as_reference(policy, data, tmp_path):
    lora = {"peft_config": LoraConfig(r=4, target_modules="all-linear")}
    options = {"gradient_accumulation_steps": 2, "weight_column": "one", "learning_rate": 1.0}
    data = data.add_column("one", [1.0] * 26)
    ours = train_dpo(*OURS, policy, tmp_path / "a", data, trainer_kwargs=dict(lora), **options)
    del options["weight_column"]
    theirs = train_dpo(*THEIRS, policy, tmp_path / "b", data, trainer_kwargs=dict(lora), **options)
    assert ours.ref_model is None
    assert parameter_gap(ours, theirs) < 1e-5
    assert step_logs(ours, "loss")[-1] != pytest.approx(0.6931, abs=1e-4)


def test_prompt_tuning(policy, tmp_path):
    """Virtual tokens come before the real ones; half the weight at twice the rate is the same training."""
    data = pairs(16).add_column("half", [0.5] * 16)
    keywords = {"peft_config": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)}
    options = {"max_grad_norm": 0.0, "trainer_kwargs": keywords}
    theirs = train_dpo(*THEIRS, policy, tmp_path / "a", data, learning_rate=0.05, **options)
    ours = train_dpo(*OURS, policy, tmp_path / "b", data, learning_rate=0.1, weight_column="half", **options)
    assert [2 * loss for loss in step_logs(ours, "loss")] == pytest.approx(step_logs(theirs, "loss"), rel=1e-5)
    assert step_logs(ours, "loss/unweighted") == pytest.approx(step_logs(theirs, "loss"), rel=1e-5)
    assert parameter_gap(ours, theirs) < 1e-6


def test_a_trained_adapter_with_its_copy_as_reference(policy, data, tmp_path):
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    def model():
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_pretrained(policy)
        return get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))

    data = data.add_column("one", [1.0] * 26)
    keywords = {"processing_class": transformers.AutoTokenizer.from_pretrained(policy)}
    ours = train_dpo(*OURS, model(), tmp_path / "a", data, trainer_kwargs=keywords, weight_column="one")
    theirs = train_dpo(*THEIRS, model(), tmp_path / "b", data, trainer_kwargs=keywords)
    assert "ref" in ours.model.peft_config
    assert step_logs(ours, "loss")[0] == pytest.approx(0.693147, rel=1e-5)
    assert parameter_gap(ours, theirs) < 1e-5


@pytest.mark.parametrize(
    "options",
    [
        {"precompute_ref_log_probs": True},
        {"sync_ref_model": True, "ref_model_sync_steps": 2},
        {"activation_checkpointing": True},
        {"max_length": 12},
        {"bf16": True},
        {
            "loss_type": ["sigmoid", "bco_pair", "sft"],
            "loss_weights": [0.8, 0.2, 1.0],
            "per_device_train_batch_size": 8,
        },
    ],
    ids=lambda options: " ".join(options),
)
def test_options_of_trl_keep_working(options, policy, data, tmp_path):
    """Ones through our code against TRL, with each option."""
    data = data.add_column("one", [1.0] * 26)
    theirs = train_dpo(*THEIRS, policy, tmp_path / "trl", data, **options)
    ours = train_dpo(*OURS, policy, tmp_path / "ours", data, weight_column="one", **options)
    assert parameter_gap(ours, theirs) < (1e-3 if options.get("bf16") else 2e-6)
    assert step_logs(ours, "loss") == pytest.approx(
        step_logs(theirs, "loss"), rel=1e-2 if options.get("bf16") else 1e-5
    )
    for key in ("rewards/margins", "logps/chosen", "entropy", "num_tokens"):
        assert step_logs(ours, key) == pytest.approx(step_logs(theirs, key), rel=1e-2, abs=1e-2), key


def test_the_auxiliary_loss_of_a_mixture_of_experts(tokenizer, tmp_path):
    """It is added unweighted, and its gradient reaches the router."""
    config = transformers.MixtralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_local_experts=4,
        output_router_logits=True,
        router_aux_loss_coef=0.5,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path / "moe")
    tokenizer.save_pretrained(tmp_path / "moe")
    data = pairs(26).add_column("one", [1.0] * 26).add_column("nothing", [0.0] * 26)
    policy = str(tmp_path / "moe")
    theirs = train_dpo(*THEIRS, policy, tmp_path / "trl", data)
    ours = train_dpo(*OURS, policy, tmp_path / "ours", data, weight_column="one")
    assert parameter_gap(ours, theirs) < 1e-5
    assert step_logs(ours, "aux_loss")[0] > 0
    router_only = train_dpo(*OURS, policy, tmp_path / "none", data, weight_column="nothing")
    assert step_logs(router_only, "loss")[0] == pytest.approx(0.5 * step_logs(router_only, "aux_loss")[0], rel=1e-5)
    assert max(step_logs(router_only, "grad_norm")) > 0


def test_the_card_of_the_model_says_what_trls_does_and_more(policy, data, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    train_dpo(*OURS, policy, tmp_path / "run", data, weighting="madpo", **options)
    train_dpo(*THEIRS, policy, tmp_path / "run-trl", data, **options)
    cards = [ModelCard.load(tmp_path / name / "README.md") for name in ("run", "run-trl")]
    assert set(cards[1].data.tags) - {"generated_from_trainer"} <= set(cards[0].data.tags)
    assert {"hf_gradkit", "madpo"} <= set(cards[0].data.tags) - set(cards[1].data.tags)
    assert cards[0].data.library_name == cards[1].data.library_name
    assert "arxiv.org/abs/2305.18290" in cards[0].text  # DPO's paper, as TRL names it
    assert "arxiv.org/abs/2510.05342" in cards[0].text  # MADPO's
