"""DPO training with what is ours on: trajectories, states, logs, and TRL's options beside it."""

import json

import pytest
import torch
from datasets import Dataset

from helpers import parameter_gap, step_logs
from hf_gradkit.reporting import read_example_log
from hf_gradkit.trainers.checkpoints import FILES
from hf_gradkit.weighting import fit_temperature, loss_weights, madpo_weights
from pair_helpers import OURS, THEIRS, make_pairs, pairs, train_dpo

METHODS = {
    "madpo": {"weighting": "madpo"},
    "rpo": {"loss_type": ["rpo"], "loss_kwargs": {"rpo": {"eta": 0.1}}},
    "rpo average": {"loss_type": ["rpo"], "loss_kwargs": {"rpo": {"normalization": "average"}}},
    "madpo rpo": {"weighting": "madpo", "loss_type": ["rpo"]},
    "beta_dpo": {"loss_type": ["beta_dpo"]},
    "linupper": {"weighting": "linupper", "weighting_kwargs": {"warmup_ratio": 0.0, "temperature": 0.4}},
    "weights": {"weight_column": "weight", "normalize_weight_column": True},
}


@pytest.fixture
def data():
    return pairs(26, "reward_margin", "weight", "source", "uid")


# ---- one trajectory -------------------------------------------------------------------------------------------------


def test_ones_are_trl(policy, tmp_path):
    """Weights of one, through all of our code, give TRL's losses and parameters."""
    ones = pairs(26).add_column("one", [1.0] * 26)
    theirs = train_dpo(*THEIRS, policy, tmp_path / "trl", ones, gradient_accumulation_steps=2)
    ours = train_dpo(*OURS, policy, tmp_path / "ours", ones, gradient_accumulation_steps=2, weight_column="one")
    assert step_logs(ours, "loss") == pytest.approx(step_logs(theirs, "loss"), rel=1e-6)
    assert step_logs(ours, "rewards/margins") == pytest.approx(
        step_logs(theirs, "rewards/margins"), rel=1e-5, abs=1e-7
    )
    assert parameter_gap(ours, theirs) < 1e-6


def test_madpo_with_margins_of_zero_is_dpo(policy, tmp_path):
    zeros = pairs(26).add_column("reward_margin", [0.0] * 26)
    theirs = train_dpo(*THEIRS, policy, tmp_path / "trl", zeros)
    options = {"weighting": "madpo", "weighting_kwargs": {"calibrate": False}}
    ours = train_dpo(*OURS, policy, tmp_path / "ours", zeros, **options)
    assert parameter_gap(ours, theirs) < 1e-6


@pytest.mark.parametrize("method", ["madpo", "rpo", "rpo average", "madpo rpo", "weights"])
def test_one_trajectory_for_every_split_of_a_step(method, policy, data, tmp_path):
    """(micro-batch, accumulation) = (8, 1), (4, 2), (2, 4): the same parameters."""
    runs = [
        train_dpo(
            *OURS,
            policy,
            tmp_path / str(size),
            data,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
            max_steps=3,
            **METHODS[method],
        )
        for size in (8, 4, 2)
    ]
    for run in runs[1:]:
        assert parameter_gap(runs[0], run) < 2e-6
        assert step_logs(run, "loss") == pytest.approx(step_logs(runs[0], "loss"), rel=1e-5)


def test_trls_relative_of_rpo_depends_on_the_split(policy, data, tmp_path):
    """What ours avoids: TRL's token mean is another loss for every micro-batch size."""
    options = {"loss_type": ["sigmoid", "sft"], "max_steps": 3, "learning_rate": 0.3}
    whole, split = (
        train_dpo(
            *THEIRS,
            policy,
            tmp_path / str(size),
            data,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
            **options,
        )
        for size in (8, 1)
    )
    assert parameter_gap(whole, split) > 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_is_the_run_that_was_not_interrupted(method, policy, data, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 3, "max_steps": 9, "learning_rate": 0.3, **METHODS[method]}
    straight = train_dpo(*OURS, policy, tmp_path / "a", data, **saving)
    resumed = train_dpo(*OURS, policy, tmp_path / "b", data, resume=str(tmp_path / "a" / "checkpoint-3"), **saving)
    assert parameter_gap(straight, resumed) == 0
    keys = ["loss", "weights/mean", "beta_dpo/beta", "beta_dpo/gap_mean"]
    for key in keys:
        assert step_logs(straight, key)[3:] == step_logs(resumed, key)[3:], key
    if method == "beta_dpo":
        assert len(set(step_logs(straight, "beta_dpo/beta"))) > 3
        assert straight._adapter.seed == straight.args.seed


def test_beta_dpos_averages_are_not_those_of_a_fresh_run(policy, data, tmp_path):
    """A state that is not restored changes the run: the test above can fail."""
    saving = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6, "learning_rate": 0.3, **METHODS["beta_dpo"]}
    straight = train_dpo(*OURS, policy, tmp_path / "a", data, **saving)
    state = tmp_path / "a" / "checkpoint-3" / "example_weighting.pt"
    kept = torch.load(state, weights_only=True)
    assert kept["adapter"]["batches"] == 3
    torch.save({key: value for key, value in kept.items() if key != "adapter"}, state)
    listed = json.loads((state.parent / FILES).read_text())
    listed["files"][state.name] = state.stat().st_size  # else it tells that the state was changed
    (state.parent / FILES).write_text(json.dumps(listed))
    resumed = train_dpo(*OURS, policy, tmp_path / "b", data, resume=str(state.parent), **saving)
    assert step_logs(straight, "beta_dpo/gap_mean")[3:] != step_logs(resumed, "beta_dpo/gap_mean")[3:]


# ---- weights --------------------------------------------------------------------------------------------------------


def test_the_weights_used_are_those_of_the_pairs(policy, data, tmp_path):
    """Every pair's weight, as the example log has it, is MADPO's of its own margin, by id, over two epochs."""
    options = {"example_log": True, "example_id_column": "uid", "max_steps": -1, "num_train_epochs": 2}
    train_dpo(*OURS, policy, tmp_path, data, weighting="madpo", weighting_kwargs={"c_max": 2.0}, **options)
    margins = torch.tensor(data["reward_margin"], dtype=torch.float64)
    expected = dict(
        zip(data["uid"], madpo_weights(margins / fit_temperature(margins), c_max=2.0).tolist(), strict=True)
    )
    rows = read_example_log(str(tmp_path)).to_pylist()
    assert sorted(row["example_id"] for row in rows) == sorted(list(data["uid"]) * 2)
    margin_of = dict(zip(data["uid"], data["reward_margin"], strict=True))
    for row in rows:
        assert row["weight"] == pytest.approx(expected[row["example_id"]], rel=1e-9)
        assert row["margin"] == pytest.approx(margin_of[row["example_id"]])
    assert len({round(row["weight"], 3) for row in rows}) > 10


def test_loss_based_weights_compare_dpo_losses(policy, data, tmp_path):
    """Whatever the loss type; in scope "step" over all micro-batches of the step."""
    options = {
        "loss_type": ["ipo"],
        "weighting": "linupper",
        "weighting_kwargs": {"scope": "step", "warmup_ratio": 0.0},
        "gradient_accumulation_steps": 2,
        "example_log": True,
        "learning_rate": 5.0,
    }
    train_dpo(*OURS, policy, tmp_path, data, **options)
    rows = read_example_log(str(tmp_path)).to_pylist()
    for step in (1, 2):  # of 26 pairs, the fourth step has 2
        of_step = [row for row in rows if row["step"] == step]
        losses = torch.tensor([row["loss"] for row in of_step], dtype=torch.float64)
        assert len(of_step) == 8
        assert losses.std() > 1e-4
        expected = loss_weights(losses, "linupper").tolist()
        assert [row["weight"] for row in of_step] == pytest.approx(expected, rel=1e-6)


def test_weights_of_zero_drop_pairs(policy, tmp_path):
    """Pairs of weight 0, however odd, change nothing but the divisor."""
    rows = make_pairs(16)
    for i in range(0, 16, 2):
        rows[i]["chosen"] = " zzz zzz zzz"
    weights = [2.0 * (i % 2) for i in range(16)]
    data = Dataset.from_list([{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in rows])
    odd = [row for i, row in enumerate(make_pairs(16)) if i % 2]
    half = Dataset.from_list([{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in odd])
    all_at_once = {"max_steps": 1, "logging_steps": 1}
    weighted = train_dpo(
        *OURS,
        policy,
        tmp_path / "a",
        data.add_column("w", weights),
        weight_column="w",
        per_device_train_batch_size=16,
        **all_at_once,
    )
    alone = train_dpo(*THEIRS, policy, tmp_path / "b", half, per_device_train_batch_size=8, **all_at_once)
    assert parameter_gap(weighted, alone) < 1e-6


def test_streamed_pairs(policy, data, tmp_path):
    options = {"weighting": "madpo", "weighting_kwargs": {"calibrate": False}}
    streamed = train_dpo(*OURS, policy, tmp_path / "a", data.to_iterable_dataset(), **options)
    assert step_logs(streamed, "weights/mean")[0] != 1.0
    with pytest.raises(ValueError, match="temperature cannot be fitted to the margins of streamed data"):
        train_dpo(*OURS, policy, tmp_path / "b", data.to_iterable_dataset(), weighting="madpo")


# ---- logs -----------------------------------------------------------------------------------------------------------


def test_the_figures_in_the_logs(policy, data, tmp_path):
    trainer = train_dpo(*OURS, policy, tmp_path, data, per_device_train_batch_size=26, max_steps=2, weighting="madpo")
    margins = torch.tensor(data["reward_margin"], dtype=torch.float64)
    t = fit_temperature(margins)
    weights = madpo_weights(margins / t)
    first, second = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert first["margins/temperature"] == pytest.approx(t)
    assert first["margins/mean"] == pytest.approx((margins / t).mean().item())
    assert first["margins/agreement"] == pytest.approx((margins > 0).double().mean().item())
    assert first["weights/mean"] == pytest.approx(weights.mean().item())
    assert first["weights/min"] == pytest.approx(weights.min().item())
    assert first["weights/max"] == pytest.approx(weights.max().item())
    ess = weights.sum() ** 2 / (26 * weights.square().sum())
    assert first["weights/ess"] == pytest.approx(ess.item())
    # the policy is its reference at the start: every pair's loss is ln 2
    assert first["loss"] == pytest.approx(weights.mean().item() * 0.693147, rel=1e-5)
    assert first["loss/unweighted"] == pytest.approx(0.693147, rel=1e-5)
    assert (first["logps/chosen_drift"], first["logps/rejected_drift"]) == (0.0, 0.0)
    assert second["logps/chosen_drift"] == pytest.approx(second["logps/chosen"] - first["logps/chosen"], abs=1e-4)
    assert second["logps/rejected_drift"] == pytest.approx(
        second["logps/rejected"] - first["logps/rejected"], abs=1e-4
    )
    assert second["rewards/chosen"] == pytest.approx(0.1 * second["logps/chosen_drift"], abs=1e-5)
    info = json.loads((tmp_path / "gradkit_run.json").read_text())
    assert info["margin_temperature"] == pytest.approx(t)
    assert info["loss_type"] == ["sigmoid"]


def test_rewards_are_logged_at_the_configured_beta(policy, data, tmp_path):
    options = {"loss_type": ["beta_dpo"], "learning_rate": 0.5, "max_steps": 5, "beta": 0.2}
    trainer = train_dpo(*OURS, policy, tmp_path, data, **options)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert any(abs(entry["beta_dpo/beta"] - 0.2) > 1e-3 for entry in logs)
    for entry in logs:
        assert entry["rewards/chosen"] == pytest.approx(0.2 * entry["logps/chosen_drift"], abs=1e-5)
        assert entry["beta_dpo/kept"] == 0.75  # int(.8 * 4) of 4


def test_evaluation_leaves_the_training_alone(policy, data, tmp_path):
    """Averages, window and draws are those of a run that never evaluated; the loss is unweighted."""
    for method in ("beta_dpo", "linupper"):
        options = {"max_steps": 6, "learning_rate": 0.3, **METHODS[method]}
        without = train_dpo(*OURS, policy, tmp_path / f"{method}-a", data, **options)
        keywords = {"eval_dataset": pairs(10, seed=1)}
        with_eval = train_dpo(
            *OURS,
            policy,
            tmp_path / f"{method}-b",
            data,
            trainer_kwargs=keywords,
            eval_strategy="steps",
            eval_steps=2,
            **options,
        )
        assert parameter_gap(without, with_eval) == 0
        assert len([entry for entry in with_eval.state.log_history if "eval_loss" in entry]) == 3


def test_evaluation_loss_is_trls(policy, data, tmp_path):
    keywords = {"eval_dataset": pairs(10, seed=1)}
    ours = train_dpo(*OURS, policy, tmp_path / "a", data, trainer_kwargs=keywords, weighting="madpo")
    ours.save_model(str(tmp_path / "trained"))
    theirs = train_dpo(*THEIRS, policy, tmp_path / "b", data, trainer_kwargs=keywords, max_steps=1)
    theirs.model.load_state_dict(ours.model.state_dict())
    assert ours.evaluate()["eval_loss"] == pytest.approx(theirs.evaluate()["eval_loss"], rel=1e-6)


# ---- methods from outside -------------------------------------------------------------------------------------------


def test_an_objective_from_outside_the_package(policy, data, tmp_path):
    options = {"loss_type": ["pair_methods:Scaled"], "loss_kwargs": {"pair_methods:Scaled": {"factor": 3.0}}}
    ours = train_dpo(*OURS, policy, tmp_path, data, **options)
    assert step_logs(ours, "loss")[0] == pytest.approx(3 * 0.693147, rel=1e-5)


def test_a_pair_weighting_from_outside_the_package(policy, data, tmp_path):
    options = {"weighting": "pair_methods:AgreeingOnly", "weighting_kwargs": {"calibrate": False}}
    ours = train_dpo(*OURS, policy, tmp_path, data, per_device_train_batch_size=26, max_steps=1, **options)
    agreeing = sum(margin > 0 for margin in data["reward_margin"]) / 26
    assert step_logs(ours, "weights/mean")[0] == pytest.approx(agreeing)
    assert step_logs(ours, "loss")[0] == pytest.approx(agreeing * 0.693147, rel=1e-5)


def test_an_objective_that_returns_something_else_is_told(policy, data, tmp_path):
    with pytest.raises(ValueError, match=r"`preference` of the objective 'pair_methods:OneNumber' returned \(\)"):
        train_dpo(*OURS, policy, tmp_path, data, loss_type=["pair_methods:OneNumber"])
