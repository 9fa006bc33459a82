"""Preference training in two real DDP processes: parity with TRL, and one trajectory however a step is split."""

from collections import Counter

import pytest

import hf_gradkit
from helpers import parameter_gap, step_logs
from hf_gradkit.reporting import read_example_log
from pair_helpers import make_pairs, pairs, save_policy, train_dpo
from results import Results

pytestmark = pytest.mark.multiprocess

COLUMNS = ("reward_margin", "weight", "source", "uid")


def case(name, trainer="ours", rows=26, columns=COLUMNS, resume=None, **options):
    return {
        "name": name,
        "trainer": trainer,
        "rows": rows,
        "columns": columns,
        "resume": resume,
        "options": {
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "ddp_find_unused_parameters": False,
            **options,
        },
    }


# A step of 8 pairs, as 2 ranks x 2 pairs x 2 micro-batches here and as one micro-batch in the test. An epoch's last
# step is left out: two ranks fill it up with rows that one process does not repeat.
SPLIT = {"max_steps": 3, "lr_scheduler_type": "constant", "learning_rate": 0.3}
SPLITS = {
    "madpo": {"weighting": "madpo"},
    "rpo": {"loss_type": ["rpo"], "loss_kwargs": {"rpo": {"eta": 0.1}}},
    "rpo average": {"loss_type": ["rpo"], "loss_kwargs": {"rpo": {"normalization": "average"}}},
    "madpo rpo": {"weighting": "madpo", "loss_type": ["rpo"]},
    "weights": {"weight_column": "weight", "normalize_weight_column": True},
    "step": {"weighting": "linupper", "weighting_kwargs": {"scope": "step", "warmup_ratio": 0.0, "temperature": 0.4}},
}
BETA = {"loss_type": ["beta_dpo"], "learning_rate": 0.5, "gradient_accumulation_steps": 1}
SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 5}
LOG = {"example_log": True, "example_id_column": "uid", "group_column": "source"}

CASES = [
    case("trl", "trl"),
    case("off"),
    case("ones", group_column="source"),
    *(case(name, **{**SPLIT, **options}) for name, options in SPLITS.items()),
    case("beta_dpo", per_device_train_batch_size=4, max_steps=3, lr_scheduler_type="constant", **BETA),
    # A rank may keep no pair at all: one of two is kept.
    case(
        "one kept",
        per_device_train_batch_size=1,
        max_steps=6,
        **{**BETA, "loss_kwargs": {"beta_dpo": {"keep_ratio": 0.5}}},
    ),
    case("saved", per_device_train_batch_size=4, **{**BETA, **SAVING}),
    case("trl reward", "trl reward"),
    case("reward", "reward"),
    case("watched", monitors=["entanglement"], monitor_steps=1, **SPLIT),
    case("epochs", rows=11, max_steps=-1, num_train_epochs=2, weighting="madpo", gradient_accumulation_steps=1, **LOG),
]


@pytest.fixture(scope="module")
def results(tokenizer, tmp_path_factory) -> Results:
    results = Results("dpo_cases.py", tmp_path_factory.mktemp("two"))
    save_policy(results.folder / "policy", tokenizer)
    results.run(CASES)
    for one in CASES:
        assert results.of(one["name"])["processes"] == 2
        assert results.of(one["name"])["distributed_type"] == "MULTI_CPU"
    return results


def alone(results, tmp_path, **options):
    """The same run in this process, with a micro-batch of 8."""
    return train_dpo(
        hf_gradkit.DPOTrainer,
        hf_gradkit.DPOConfig,
        str(results.folder / "policy"),
        tmp_path,
        pairs(26, *COLUMNS),
        per_device_train_batch_size=8,
        **options,
    )


@pytest.mark.parametrize("ours", ["off", "ones"])
def test_with_ours_off_or_ones_two_processes_are_trl(ours, results):
    their_logs, our_logs = results.of("trl")["logs"], results.of(ours)["logs"]
    if ours == "off":
        assert their_logs == our_logs
        assert results.gap(ours, results.parameters("trl")) == 0
    assert results.gap(ours, results.parameters("trl")) < 1e-7
    for their_log, our_log in zip(their_logs, our_logs, strict=True):
        assert {key: our_log[key] for key in their_log} == pytest.approx(their_log, rel=1e-6, abs=1e-9)


def test_reward_training_in_two_processes_is_trls(results):
    assert results.of("trl reward")["logs"] == results.of("reward")["logs"]
    assert results.gap("reward", results.parameters("trl reward")) == 0
    assert len(set(results.logs("reward", "accuracy"))) > 1


@pytest.mark.parametrize("name", SPLITS)
def test_two_ranks_times_two_times_two_is_one_times_eight(name, results, tmp_path):
    one = alone(results, tmp_path, **{**SPLIT, **SPLITS[name]})
    assert results.gap(name, one.model.state_dict()) < 3e-6
    for key in ("loss", "loss/unweighted", "weights/mean", "weights/max", "logps/chosen_drift"):
        assert results.logs(name, key) == pytest.approx(step_logs(one, key), rel=1e-4, abs=1e-5), key
    if name != "rpo":
        assert len(set(results.logs(name, "loss"))) == 3


def test_beta_dpo_over_ranks(results, tmp_path):
    """Equal global micro-batches: the same averages, the same pairs, the same beta on every rank."""
    options = {"max_steps": 3, "lr_scheduler_type": "constant", **BETA}
    one = alone(results, tmp_path / "one", **options)
    assert results.gap("beta_dpo", one.model.state_dict()) < 3e-6
    for key in ("loss", "beta_dpo/beta", "beta_dpo/kept", "beta_dpo/gap_mean", "beta_dpo/gap_std"):
        assert results.logs("beta_dpo", key) == pytest.approx(step_logs(one, key), rel=1e-4, abs=1e-6), key
    assert results.of("beta_dpo", 0)["logs"] == results.of("beta_dpo", 1)["logs"]


def test_beta_dpo_is_not_invariant_over_accumulation(results, tmp_path):
    """What the documentation says: the micro-batch is what is compared."""
    options = {"max_steps": 3, "lr_scheduler_type": "constant", **BETA}
    whole = alone(results, tmp_path / "whole", **options)
    split = train_dpo(
        hf_gradkit.DPOTrainer,
        hf_gradkit.DPOConfig,
        str(results.folder / "policy"),
        tmp_path / "split",
        pairs(26, *COLUMNS),
        per_device_train_batch_size=4,
        **{**options, "gradient_accumulation_steps": 2},
    )
    assert parameter_gap(whole, split) > 1e-4


def test_a_rank_that_keeps_no_pair_goes_along(results):
    assert results.logs("one kept", "beta_dpo/kept") == [0.5] * 6
    assert all(value > 0 for value in results.logs("one kept", "grad_norm"))


def test_beta_dpo_resumes_where_it_was(results):
    whole, logs = results.parameters("saved"), results.of("saved")["logs"]
    (saved,) = (one for one in CASES if one["name"] == "saved")
    results.run([{**saved, "resume": str(results.folder / "saved" / "checkpoint-4")}])
    assert results.gap("saved", whole) == 0
    again = results.of("saved")["logs"]
    assert [entry.get("beta_dpo/beta") for entry in again] == [entry.get("beta_dpo/beta") for entry in logs]


def test_entanglement_over_ranks(results, tmp_path):
    """The monitor's figures are means over the pairs of both ranks, those of one process with all of them."""
    one = alone(results, tmp_path, monitors=["entanglement"], monitor_steps=1, **SPLIT)
    for name in ("cosine", "norm_ratio", "chosen_norm", "rejected_norm", "ideal", "both_fall", "coverage"):
        key = f"entanglement/{name}"
        assert results.logs("watched", key) == pytest.approx(step_logs(one, key), rel=1e-4, abs=1e-6), name
    assert results.gap("watched", one.model.state_dict()) < 3e-6


def test_pairs_are_logged_once_an_epoch(results):
    """11 pairs on 2 x 2: the sampler fills the last batch up with pairs that were there before."""
    log = read_example_log(str(results.folder / "epochs")).to_pylist()
    assert set(Counter((row["example_id"], row["epoch"]) for row in log).values()) == {1}
    assert len(log) == 22
    margins = {row["uid"]: row["reward_margin"] for row in make_pairs(11)}
    assert all(row["margin"] == pytest.approx(margins[row["example_id"]]) for row in log)
