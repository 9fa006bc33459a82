"""Balanced pulls: the gradient against autograd of one answer at a time, the loss unchanged, and where answers go."""

import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

import hf_gradkit
from helpers import parameter_gap, step_logs
from hf_gradkit import EntanglementCallback
from hf_gradkit.gradients.balancing import LogRatio, alphas
from pair_helpers import OURS, dpo, first_batch, loss_and_gradient, pairs, train_dpo

LOSSES = [
    {"loss_type": ["sigmoid"]},
    {"loss_type": ["ipo"]},
    {"loss_type": ["hinge"]},
    {"loss_type": ["sppo_hard"]},
    {"loss_type": ["rpo"], "loss_kwargs": {"rpo": {"eta": 0.1}}},
    {"weighting": "madpo", "weighting_kwargs": {"calibrate": False}},
]


def test_alpha_makes_both_equally_long():
    chosen, rejected = torch.tensor([1.0, 4.0, 0.0, 2.0]), torch.tensor([9.0, 1.0, 3.0, 0.0])
    alpha = alphas(chosen, rejected)
    assert alpha.tolist() == [3.0, 0.5, 1.0, 1.0]
    assert torch.allclose((alpha * chosen)[:2], (rejected / alpha)[:2])


def test_the_average_takes_out_what_was_active():
    """Pairs whose plain ratio is 4 throughout: what is recorded is 4 once and 1 from then on; alpha stays at 2."""
    average = LogRatio()
    assert average.alpha == 1.0
    for _ in range(10):
        average.update(torch.tensor(4.0 / average.alpha**2).log().item())
        assert average.alpha == pytest.approx(2.0)
    for _ in range(100):  # the ratio changes to 1
        average.update(torch.tensor(1.0 / average.alpha**2).log().item())
    assert average.alpha == pytest.approx(1.0, abs=1e-3)


def test_the_average_forgets_a_tenth_a_step():
    average = LogRatio()
    average.update(2.0)
    average.update(5.0 - 2.0)  # of plain log ratio 5, while alpha = e takes out 2
    assert average.value == pytest.approx(0.9 * 2.0 + 0.1 * 5.0)


@pytest.mark.parametrize("options", LOSSES, ids=lambda o: str(o.get("loss_type", o.get("weighting"))))
def test_each_pair_is_balanced_and_the_loss_is_the_same(options, policy, tmp_path):
    """The gradient is sum alpha A + B / alpha, with A and B from one backward a row of the trainer's own loss."""
    keywords = {"per_device_train_batch_size": 6, "beta": 0.3, **options}
    data = pairs(6, "reward_margin")
    plain = dpo(*OURS, policy, tmp_path / "a", data, **keywords)
    balanced = dpo(*OURS, policy, tmp_path / "b", data, gradient_balancing="pair", **keywords)
    batch, same = first_batch(plain), first_batch(balanced)
    expected_loss, _ = loss_and_gradient(plain, batch)

    def through(rows):
        """The gradient that flows through some rows only."""
        model = plain.model

        def keep(module, positional, output):
            if torch.is_grad_enabled():
                mask = torch.zeros(12, 1)
                mask[rows] = 1
                output.log_probs.register_hook(lambda g: g * mask)

        hook = model.register_forward_hook(keep)
        gradient = loss_and_gradient(plain, batch)[1].double()
        hook.remove()
        return gradient

    chosen = torch.stack([through([i]) for i in range(6)])
    rejected = torch.stack([through([6 + i]) for i in range(6)])
    alpha = (rejected.norm(dim=1) / chosen.norm(dim=1)).sqrt()
    there = (chosen.norm(dim=1) > 0) & (rejected.norm(dim=1) > 0)
    alpha = torch.where(there, alpha, torch.ones_like(alpha))[:, None]
    expected = (alpha * chosen + rejected / alpha).sum(0)
    handler = balanced.callback_handler
    handler.on_step_begin(balanced.args, balanced.state, balanced.control)
    loss, gradient = loss_and_gradient(balanced, same)
    balanced._balancing._close()
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-6)
    assert (gradient.double() - expected).norm() < 1e-4 * expected.norm()
    assert there.any()
    assert (alpha - 1).abs().max() > 0.05


def watched(policy, folder, data, **options):
    trainer = dpo(*OURS, policy, folder, data, **options)
    trainer.add_callback(EntanglementCallback(observe=True, trainer=trainer))
    trainer.train()
    return trainer


def test_a_balanced_pair_goes_as_meant(policy, tmp_path):
    """Pairs that share nearly everything, one a step: without balancing both fall, with it none does."""
    rows = [{"prompt": " the cat", "chosen": " sat", "rejected": " sat sat sat sat sat sat sat"}] * 8
    options = {"per_device_train_batch_size": 1, "max_steps": 6, "learning_rate": 1e-3, "warmup_steps": 0}
    plain = watched(policy, tmp_path / "plain", Dataset.from_list(rows), **options)
    exact = watched(policy, tmp_path / "pair", Dataset.from_list(rows), gradient_balancing="pair", **options)
    for name in ("both_fall", "ideal", "observed_chosen_rises"):
        found = [step_logs(trainer, f"entanglement/{name}") for trainer in (plain, exact)]
        expected = (1.0, 0.0) if name == "both_fall" else (0.0, 1.0)
        assert [set(values) for values in found] == [{expected[0]}, {expected[1]}], name
    assert step_logs(exact, "entanglement/norm_ratio") == pytest.approx([1.0] * 6, rel=1e-4)


def test_the_average_balances_a_batch(policy, tmp_path):
    rows = [{"prompt": " the cat", "chosen": " sat", "rejected": " sat sat sat sat sat sat sat"}] * 24
    options = {"per_device_train_batch_size": 4, "max_steps": 6, "learning_rate": 1e-3, "monitor_steps": 1}
    trainer = watched(policy, tmp_path, Dataset.from_list(rows), gradient_balancing="batch", **options)
    ratio = step_logs(trainer, "entanglement/norm_ratio")
    assert ratio[0] > 1.5  # nothing is known before the first step
    assert ratio[1:] == pytest.approx([1.0] * 5, rel=0.01)
    assert step_logs(trainer, "entanglement/both_fall") == [1.0, 0, 0, 0, 0, 0]
    assert step_logs(trainer, "entanglement/observed_chosen_rises")[1:] == [1.0] * 5
    alpha = step_logs(trainer, "balancing/alpha")
    assert alpha == pytest.approx([ratio[0] ** 0.5] * 6, rel=0.01)


@pytest.mark.parametrize("mode", ["pair", "batch"])
@pytest.mark.parametrize("options", [{"activation_checkpointing": True}, {"precompute_ref_log_probs": True}], ids=str)
def test_under_options_of_trl(options, mode, policy, tmp_path):
    watch = {"gradient_balancing": mode, "monitor_steps": 1, "max_steps": 3}
    plain = train_dpo(*OURS, policy, tmp_path / "a", pairs(26), **watch)
    other = train_dpo(*OURS, policy, tmp_path / "b", pairs(26), **watch, **options)
    assert parameter_gap(plain, other) < 3e-6


@pytest.mark.parametrize("mode", ["pair", "batch"])
def test_the_split_of_a_step_is_no_matter(mode, policy, tmp_path):
    def run(size):
        split = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size, "max_steps": 3}
        keywords = {"gradient_balancing": mode, "monitor_steps": 1}
        return train_dpo(*OURS, policy, tmp_path / str(size), pairs(26), **split, **keywords)

    one, other = run(8), run(2)
    assert parameter_gap(one, other) < 3e-6
    plain = train_dpo(*OURS, policy, tmp_path / "plain", pairs(26), per_device_train_batch_size=8, max_steps=3)
    assert parameter_gap(one, plain) > 1e-4


def test_a_resumed_run_goes_on_with_its_average(policy, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6, "monitor_steps": 2}
    whole = train_dpo(*OURS, policy, tmp_path, pairs(26), gradient_balancing="batch", **options)
    lines = (tmp_path / "gradient_balancing.jsonl").read_text()
    checkpoint = str(tmp_path / "checkpoint-3")
    again = train_dpo(*OURS, policy, tmp_path, pairs(26), gradient_balancing="batch", resume=checkpoint, **options)
    assert parameter_gap(whole, again) == 0
    assert (tmp_path / "gradient_balancing.jsonl").read_text() == lines
    assert [json.loads(line)["step"] for line in lines.splitlines()] == [1, 3, 5]


def test_with_lora(policy, tmp_path):
    keywords = {"trainer_kwargs": {"peft_config": LoraConfig(r=4, target_modules="all-linear")}, "learning_rate": 1.0}
    trainer = dpo(*OURS, policy, tmp_path, pairs(26), gradient_balancing="pair", **keywords)
    trainer.add_callback(EntanglementCallback(trainer=trainer))
    trainer.train()
    assert step_logs(trainer, "entanglement/norm_ratio") == pytest.approx([1.0] * 4, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"gradient_balancing": "both"}, "`gradient_balancing` must be 'none', 'pair' or 'batch', but it is 'both'"),
        ({"gradient_balancing": "pair", "ld_alpha": 0.5}, r"`ld_alpha` is 0\.5"),
        (
            {"gradient_balancing": "pair", "gradient_checkpointing_kwargs": {"use_reentrant": True}},
            "'use_reentrant' to False in `gradient_checkpointing_kwargs`",
        ),
    ],
)
def test_what_is_refused(options, part):
    with pytest.raises(ValueError, match=part):
        hf_gradkit.DPOConfig("out", use_cpu=True, bf16=False, **options)
