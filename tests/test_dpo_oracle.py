"""The weighted loss and its gradient, for every loss type, against TRL's own loss of one pair at a time.

Models are in float64, but TRL's fused head computes log-probabilities in float32: that bounds the agreement.
"""

import math

import pytest
import torch
import trl

import hf_gradkit
from hf_gradkit import _compat
from hf_gradkit.data.columns import INFO
from hf_gradkit.weighting import fit_temperature, madpo_weights
from pair_helpers import dpo, first_batch, loss_and_gradient, pairs

DEPENDENT = ("aot", "aot_unpaired")
TYPES = [name for name in _compat.DPO_LOSS_TYPES if name not in (*DEPENDENT, "sft")]
NEEDS = {"exo_pair": {"label_smoothing": 0.1}, "robust": {"label_smoothing": 0.1}}
N = 6


def double(trainer):
    trainer.model.double()
    if trainer.ref_model is not None:
        trainer.ref_model.double()
    return trainer


def make(policy, tmp_path, trainer=hf_gradkit.DPOTrainer, config=hf_gradkit.DPOConfig, **options):
    """Return a trainer in float64 and its first batch of N pairs, policy and reference apart."""
    data = pairs(24, "weight", "reward_margin")
    made = double(
        dpo(trainer, config, policy, tmp_path, data, per_device_train_batch_size=N, beta=0.5, seed=1, **options)
    )
    return made, first_batch(made)


def one_at_a_time(policy, tmp_path, batch, weights, **options):
    """The oracle: TRL's loss of each pair alone, times its weight, averaged; and the gradient of that."""
    theirs, _ = make(policy, tmp_path / "trl", trl.DPOTrainer, trl.DPOConfig, **options)
    loss = gradient = 0.0
    for i, weight in enumerate(weights.tolist()):
        single = {k: v[[i, N + i]] if len(v) == 2 * N else v[[i]] for k, v in batch.items() if k != INFO}
        of_pair = loss_and_gradient(theirs, single)
        loss, gradient = loss + weight * of_pair[0] / N, gradient + weight * of_pair[1] / N
    return loss, gradient


def assert_same(found, expected):
    assert found[0].item() == pytest.approx(expected[0].item(), rel=3e-6)
    assert (found[1] - expected[1]).norm() < 3e-6 * expected[1].norm()
    assert expected[1].norm() > 1e-3


@pytest.mark.parametrize("loss_type", TYPES)
def test_weighted_loss_types(loss_type, policy, tmp_path):
    options = {"loss_type": [loss_type], **NEEDS.get(loss_type, {})}
    ours, batch = make(policy, tmp_path, weight_column="weight", **options)
    weights = batch[INFO].weight
    assert len(set(weights.tolist())) > 2
    assert 0.0 in weights.tolist()
    assert_same(loss_and_gradient(ours, batch), one_at_a_time(policy, tmp_path, batch, weights, **options))


@pytest.mark.parametrize(
    "options",
    [
        {"f_divergence_type": "js_divergence"},
        {"f_divergence_type": "forward_kl"},
        {"ld_alpha": 0.5},
        {"use_weighting": True},
        {"loss_type": ["sigmoid", "ipo"], "loss_weights": [0.7, 0.3]},
        {"loss_type": ["sigmoid", "hinge"], "loss_weights": [0.5, 2.0]},
        {"precompute_ref_log_probs": True},
    ],
    ids=lambda options: " ".join(f"{key}={value}" for key, value in options.items()),
)
def test_weights_with_options_of_trl(options, policy, tmp_path):
    if "precompute_ref_log_probs" in options:  # float32 references, computed before the models are float64
        ours, batch = make_precomputed(policy, tmp_path, **options)
    else:
        ours, batch = make(policy, tmp_path, weight_column="weight", **options)
    expected = one_at_a_time(policy, tmp_path, batch, batch[INFO].weight, **options)
    assert_same(loss_and_gradient(ours, batch), expected)


def make_precomputed(policy, tmp_path, **options):
    data = pairs(24, "weight", "reward_margin")
    keywords = {"per_device_train_batch_size": N, "beta": 0.5, "weight_column": "weight", **options}
    ours = dpo(hf_gradkit.DPOTrainer, hf_gradkit.DPOConfig, policy, tmp_path, data, **keywords)
    ours.model.double()
    batch = next(iter(ours.get_train_dataloader()))
    batch["ref_chosen_logps"] = batch["ref_chosen_logps"].double() + 1
    batch["ref_rejected_logps"] = batch["ref_rejected_logps"].double() - 2
    return ours, batch


@pytest.mark.parametrize("calibrate", [True, False])
def test_madpo(calibrate, policy, tmp_path):
    ours, batch = make(policy, tmp_path, weighting="madpo", weighting_kwargs={"calibrate": calibrate, "c_max": 3.0})
    margins = torch.tensor(pairs(24, "reward_margin")["reward_margin"], dtype=torch.float64)
    temperature = fit_temperature(margins) if calibrate else 1.0
    weights = madpo_weights(margins[batch[INFO].index] / temperature, c_max=3.0)
    assert weights.max() > 1.1
    assert weights.min() < 0.8
    assert_same(loss_and_gradient(ours, batch), one_at_a_time(policy, tmp_path, batch, weights))


def log_probabilities(model, batch, rows):
    """The sum of the log-probabilities of the answers' tokens, the long way."""
    logits = model(input_ids=batch["input_ids"][rows], attention_mask=batch["attention_mask"][rows]).logits[:, :-1]
    logps = logits.log_softmax(-1).gather(2, batch["input_ids"][rows][:, 1:, None])[..., 0]
    mask = batch["completion_mask"][rows][:, 1:]
    return (logps * mask).sum(1), mask.sum(1)


def by_hand(trainer, batch, loss_of):
    """A loss of all pairs from first principles, and its gradient."""
    trainer.model.zero_grad()
    logps, tokens = log_probabilities(trainer.model, batch, slice(None))
    with torch.no_grad():
        reference, _ = log_probabilities(trainer.ref_model, batch, slice(None))
    margins = (logps - reference)[:N] - (logps - reference)[N:]
    loss = loss_of(margins, logps[:N], tokens[:N])
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]).clone()
    return loss.detach(), gradient


@pytest.mark.parametrize("normalization", ["sum", "average"])
@pytest.mark.parametrize("weighting", ["none", "madpo"])
def test_rpo(normalization, weighting, policy, tmp_path):
    """Both published forms; MADPO's weights multiply the preference term, not the regulariser."""
    options = {"loss_type": ["rpo"], "loss_kwargs": {"rpo": {"eta": 0.3, "normalization": normalization}}}
    ours, batch = make(policy, tmp_path, weighting=weighting, **options)
    weights = torch.ones(N, dtype=torch.float64)
    if weighting == "madpo":
        margins = torch.tensor(pairs(24, "reward_margin")["reward_margin"], dtype=torch.float64)
        weights = madpo_weights(margins[batch[INFO].index] / fit_temperature(margins))

    def loss_of(m, lw, tokens):
        second = -0.3 * 0.5 * lw if normalization == "sum" else 0.3 * (-lw / tokens)
        return (-weights * torch.nn.functional.logsigmoid(0.5 * m) + second).mean()

    assert_same(loss_and_gradient(ours, batch), by_hand(ours, batch, loss_of))


@pytest.mark.parametrize("normalize", [False, True])
def test_rpo_with_a_weight_column(normalize, policy, tmp_path):
    """The data's weights multiply both parts of a pair's loss."""
    options = {"loss_type": ["rpo"], "loss_kwargs": {"rpo": {"eta": 0.3}}}
    ours, batch = make(policy, tmp_path, weight_column="weight", normalize_weight_column=normalize, **options)
    weights = batch[INFO].weight
    if normalize:
        ours._step_totals = ours._count([batch])
        weights = weights / weights.mean()

    def loss_of(m, lw, tokens):
        return (weights * (-torch.nn.functional.logsigmoid(0.5 * m) - 0.3 * 0.5 * lw)).mean()

    assert_same(loss_and_gradient(ours, batch), by_hand(ours, batch, loss_of))


def test_rpo_beside_a_loss_type_of_trl(policy, tmp_path):
    options = {"loss_type": ["ipo", "rpo"], "loss_weights": [0.25, 2.0]}
    ours, batch = make(policy, tmp_path, **options, loss_kwargs={"rpo": {"eta": 0.1}})
    theirs, _ = make(policy, tmp_path / "trl", trl.DPOTrainer, trl.DPOConfig, loss_type=["ipo"], loss_weights=[0.25])
    ipo = loss_and_gradient(theirs, {key: value for key, value in batch.items() if key != INFO})
    rpo = by_hand(
        ours,
        batch,
        lambda m, lw, tokens: 2.0 * (-torch.nn.functional.logsigmoid(0.5 * m) - 0.1 * 0.5 * lw).mean(),
    )
    assert_same(loss_and_gradient(ours, batch), (ipo[0] + rpo[0], ipo[1] + rpo[1]))


def test_trls_sft_term_gets_the_weight_column_and_not_the_methods_weights(policy, tmp_path):
    options = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}
    ours, batch = make(policy, tmp_path, weighting="madpo", weight_column="weight", **options)
    column = batch[INFO].weight
    margins = torch.tensor(pairs(24, "reward_margin")["reward_margin"], dtype=torch.float64)
    weights = column * madpo_weights(margins[batch[INFO].index] / fit_temperature(margins))

    def loss_of(m, lw, tokens):
        preference = (-weights * torch.nn.functional.logsigmoid(0.5 * m)).mean()
        return preference + 0.5 * -(column * lw).sum() / tokens.sum()

    assert_same(loss_and_gradient(ours, batch), by_hand(ours, batch, loss_of))


def test_trls_sft_term_without_weights_is_trls(policy, tmp_path):
    options = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}
    ours, batch = make(policy, tmp_path, group_column="reward_margin", **options)
    theirs, _ = make(policy, tmp_path / "trl", trl.DPOTrainer, trl.DPOConfig, **options)
    expected = loss_and_gradient(theirs, {key: value for key, value in batch.items() if key != INFO})
    assert_same(loss_and_gradient(ours, batch), expected)


def test_beta_dpo(policy, tmp_path):
    """The first batch: its own mean and spread, the pairs that were drawn, the beta that they give."""
    ours, batch = make(policy, tmp_path, loss_type=["beta_dpo"], loss_kwargs={"beta_dpo": {"alpha": 0.05}})
    found = loss_and_gradient(ours, batch)
    (beta,), (kept,) = (ours._metrics["train"][f"beta_dpo/{name}"] for name in ("beta", "kept"))
    assert kept == pytest.approx(math.floor(0.8 * N) / N)
    candidates = []
    for left_out in range(N * N):
        a, b = divmod(left_out, N)
        if a < b:
            keep = torch.tensor([i not in (a, b) for i in range(N)])
            candidates.append(keep)
    chosen_by_hand = []
    for keep in candidates:

        def loss_of(m, lw, tokens, keep=keep):
            gaps = m.detach()
            of_batch = max(1e-3, 0.5 * (1 + 0.05 * (gaps[keep].mean() - gaps.mean())))
            chosen_by_hand.append(float(of_batch))
            return -torch.nn.functional.logsigmoid(of_batch * m)[keep].mean()

        expected = by_hand(ours, batch, loss_of)
        if chosen_by_hand[-1] == pytest.approx(beta, rel=3e-6):
            assert_same(found, expected)
            break
    else:
        raise AssertionError(f"no choice of {N - 2} pairs gives beta {beta}")


@pytest.mark.parametrize("names", [["beta_dpo"], ["rpo"]])
def test_evaluation_is_unweighted_and_at_the_configured_beta(names, policy, tmp_path):
    ours, batch = make(policy, tmp_path, loss_type=names, weight_column="weight")
    ours.model.eval()
    evaluated = {key: value for key, value in batch.items() if key != INFO}
    with torch.no_grad():
        loss = ours.compute_loss(ours.model, dict(evaluated))
        again = ours.compute_loss(ours.model, dict(evaluated))

    def loss_of(m, lw, tokens):
        second = -0.005 * 0.5 * lw if names == ["rpo"] else 0.0
        return (-torch.nn.functional.logsigmoid(0.5 * m) + second).mean()

    assert loss.item() == pytest.approx(by_hand(ours, evaluated, loss_of)[0].item(), rel=3e-6)
    assert again.item() == loss.item()
    if ours._adapter is not None:
        assert ours._adapter.state_dict()["batches"] == 0
