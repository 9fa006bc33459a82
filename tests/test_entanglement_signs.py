"""What the monitor says of a pair: the regions, one pair at a time, and what a step really does."""

import json

import pytest
import torch

from hf_gradkit import EntanglementCallback
from hf_gradkit.gradients import record_gradients
from hf_gradkit.gradients.entanglement import Entanglement
from pair_helpers import OURS, THEIRS, dpo, pairs

# ---- maths ----------------------------------------------------------------------------------------------------------


def test_regions_of_the_paper():
    """With DPO's signs a pair is ideal iff cos < ratio < 1 / cos; else the longer gradient drags the other along."""
    cosine = torch.linspace(-0.99, 0.99, 67, dtype=torch.float64)[:, None]
    ratio = torch.logspace(-2, 2, 81, dtype=torch.float64)[None]
    cosine, ratio = (v.flatten() for v in torch.broadcast_tensors(cosine, ratio))
    ones = torch.ones_like(ratio)
    effect = Entanglement(ones, ratio.square(), -cosine * ratio, -ones, ones)
    outcomes = effect.outcomes()
    assert torch.allclose(effect.cosine, cosine)
    assert torch.allclose(effect.norm_ratio, ratio)
    ideal = (cosine <= 0) | ((cosine < ratio) & (ratio < 1 / cosine))
    assert (outcomes["ideal"] == ideal).all()
    assert (outcomes["both_fall"] == (~ideal & (ratio > 1))).all()
    assert (outcomes["both_rise"] == (~ideal & (ratio < 1))).all()
    assert not outcomes["inverted"].any()


def test_a_pair_without_gradient_is_inactive():
    zero = torch.zeros(1)
    outcomes = Entanglement(zero, zero, zero, zero, zero).outcomes()
    assert outcomes.pop("inactive").item()
    assert not any(value.item() for value in outcomes.values())


def test_a_pair_whose_gradients_have_nearly_vanished():
    """Norms of 1e-12, 2e-12 and a cosine of .5: the product of the squares is below what float32 holds."""
    square = torch.tensor([1e-24])
    effect = Entanglement(square, 4 * square, -square, -torch.ones(1), torch.ones(1))
    assert effect.cosine.item() == pytest.approx(0.5)
    assert effect.norm_ratio.item() == pytest.approx(2.0)
    assert not effect.outcomes()["inactive"].item()


# ---- against one pair at a time -------------------------------------------------------------------------------------


def test_figures_are_those_of_each_pair_alone(policy, tmp_path):
    """Cosine, ratio and norms from plain autograd of one answer's log-probability at a time."""
    trainer = dpo(*THEIRS, policy, tmp_path, pairs(6), per_device_train_batch_size=6, max_steps=1)
    model, reference = trainer.model.double(), trainer.ref_model.double()
    batch = next(iter(trainer.get_train_dataloader()))
    found = []
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    for row in range(12):
        model.zero_grad()
        logits = model(batch["input_ids"][[row]], batch["attention_mask"][[row]]).logits[:, :-1]
        target = labels[[row], 1:]
        picked = logits.log_softmax(-1).gather(2, target.clamp(min=0)[..., None])[..., 0]
        (picked * (target != -100)).sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]).clone())
    del reference
    trainer.model.float()
    trainer.ref_model.float()
    callback = EntanglementCallback()
    trainer.add_callback(callback)
    trainer.train()
    chosen, rejected = torch.stack(found[:6]), torch.stack(found[6:])
    cosine = torch.cosine_similarity(chosen, rejected)
    ratio = rejected.norm(dim=1) / chosen.norm(dim=1)  # DPO: the coefficients are opposite and equal
    line = json.loads((tmp_path / "entanglement.jsonl").read_text())
    by_cosine = sorted(line["pairs"])
    expected = sorted(zip(cosine.tolist(), ratio.tolist(), strict=True))
    for (c, r), (c_expected, r_expected) in zip(by_cosine, expected, strict=True):
        assert c == pytest.approx(c_expected, abs=1e-4)
        assert r == pytest.approx(r_expected, rel=1e-3)
    # at the start every pair's pull is beta s(0) = .05, on its own loss
    assert line["entanglement/chosen_norm"] == pytest.approx(0.05 * chosen.norm(dim=1).mean().item(), rel=1e-4)
    assert line["entanglement/coverage"] == 1.0


# ---- against what a step does ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "options"),
    [
        (THEIRS, {"loss_type": ["sigmoid"]}),
        (THEIRS, {"loss_type": ["ipo"]}),
        (THEIRS, {"loss_type": ["hinge"]}),
        (THEIRS, {"loss_type": ["sppo_hard"]}),
        (OURS, {"loss_type": ["rpo"], "loss_kwargs": {"rpo": {"eta": 0.1}}}),
        (OURS, {"weighting": "madpo", "weighting_kwargs": {"calibrate": False}}),
    ],
    ids=lambda value: str(value.get("loss_type", value.get("weighting"))) if isinstance(value, dict) else "",
)
def test_predicted_signs_are_the_observed_ones(classes, options, policy, tmp_path):
    """One small SGD step on a batch: what the step's direction predicts for each answer is what happens to it."""
    n, agree, counted = 16, 0, 0
    for seed in range(4):
        data = pairs(n, "reward_margin", seed=seed)
        trainer = dpo(*classes, policy, tmp_path / str(seed), data, per_device_train_batch_size=n, beta=0.3, **options)
        with torch.no_grad():
            for i, p in enumerate(trainer.model.parameters()):  # away from the reference
                p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * seed + i)))
        batch = next(iter(trainer.get_train_dataloader()))
        trainer.model.train()
        coefficients = {}

        def keep(module, positional, output, kept=coefficients):
            if torch.is_grad_enabled():
                output.log_probs.register_hook(lambda g: kept.update(g=g))

        hook = trainer.model.register_forward_hook(keep)
        with record_gradients(trainer.model) as recorder:
            trainer.compute_loss(trainer.model, dict(batch)).backward()
            gram = recorder.gram().double()
        hook.remove()
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)

        model = trainer.model.double()

        def logps(model=model, batch=batch, labels=labels):
            with torch.no_grad():
                out = model(batch["input_ids"], batch["attention_mask"]).logits[:, :-1].log_softmax(-1)
            target = labels[:, 1:]
            return (out.gather(2, target.clamp(min=0)[..., None])[..., 0] * (target != -100)).sum(1)

        before = logps()
        with torch.no_grad():
            for p in trainer.model.parameters():
                p.sub_(1e-5 * p.grad)
        observed = logps() - before
        row = coefficients["g"].double()
        row = row.gather(1, row.abs().max(1).indices[:, None])[:, 0]
        predicted = -1e-5 * gram.sum(1) / row.where(row != 0, torch.ones_like(row))
        predicted = predicted.where(row != 0, torch.zeros_like(row))
        clear = predicted.abs() > 1e-3 * predicted.abs().max()
        agree += int((predicted.sign() == observed.sign())[clear].sum())
        counted += int(clear.sum())
    assert counted > 50
    assert agree / counted >= 0.99
