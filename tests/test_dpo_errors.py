"""What preference training refuses, and what it warns of: each names the field, the value and the remedy."""

import logging

import pytest
import trl
from datasets import Dataset

import hf_gradkit
from hf_gradkit import DPOConfig
from hf_gradkit.data.columns import INDEX, INFO
from hf_gradkit.trainers.pair_checks import check_prepared_pairs
from hf_gradkit.trainers.weigher import NonFiniteLossError
from pair_helpers import dpo, make_pairs, pairs, train_dpo


def config(**options):
    return DPOConfig("out", use_cpu=True, bf16=False, **options)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"weighting": "madpo", "weighting_kwargs": {"c_max": 1.0}}, "`c_max` must be above 1, but it is 1.0"),
        ({"weighting": "madpo", "weighting_kwargs": {"c_min": 1.0}}, "`c_min` must be in"),
        ({"weighting": "madpo", "weighting_kwargs": {"tau": 0}}, "`tau` must be above 0, but it is 0"),
        ({"weighting": "madpo", "weighting_kwargs": {"warmup_ratio": 0.1}}, "no option 'warmup_ratio' for weighting="),
        ({"weighting": "linupper", "weighting_kwargs": {"normalization": "token"}}, "a pair has one loss value"),
        ({"weighting": "madpoo"}, "no weighting method 'madpoo'. Did you mean 'madpo'"),
        ({"weighting": "madpo", "loss_type": ["aot"]}, "'aot', which sorts .* belong to no single pair"),
        ({"weight_column": "weight", "loss_type": ["aot_unpaired"]}, "'aot_unpaired', which sorts"),
        ({"weighting": "linupper", "loss_type": ["sigmoid", "aot"]}, "'aot', which sorts"),
        ({"loss_type": ["rp0"]}, "no loss type 'rp0'. Did you mean 'rpo'"),
        ({"loss_type": ["sigmoid"], "loss_kwargs": {"rpo": {"eta": 1}}}, "options for 'rpo', but `loss_type` is"),
        ({"loss_type": ["sigmoid"], "loss_kwargs": {"sigmoid": {"beta": 1}}}, "whose options are fields of their own"),
        ({"loss_type": ["rpo"], "loss_kwargs": {"rpo": 0.005}}, "must be a mapping of its options"),
        ({"loss_type": ["rpo"], "loss_kwargs": {"rpo": {"etta": 1}}}, "no option 'etta'. Did you mean 'eta'"),
        ({"loss_type": ["rpo"], "loss_kwargs": '{"rpo": '}, "`loss_kwargs` must be a JSON object"),
        ({"loss_type": ["rpo"], "f_divergence_type": "js_divergence"}, "'rpo' is defined for 'reverse_kl' only"),
        ({"loss_type": ["rpo"], "ld_alpha": 0.5}, "`ld_alpha` is 0.5, and 'rpo' is not defined for weighted sums"),
        ({"weight_column": "w", "loss_type": ["sigmoid", "sft"], "use_weighting": True}, "'sft', a term that TRL"),
        ({"weighting": "madpo", "reward_margin_column": None}, "`reward_margin_column` is None"),
        ({"loss_type": ["rpo"], "loss_kwargs": [1]}, r"`loss_kwargs` must be a mapping .* but it is \[1\]"),
        ({"loss_type": ["rpo"], "use_weighting": True}, "`use_weighting` .WPO. is True together with 'rpo'"),
        ({"loss_type": ["rpo", "beta_dpo"]}, "not tested together with another of our objectives"),
        ({"reward_model_name_or_path": "runs/reward"}, "uses no reward margins. Set weighting='madpo'"),
        ({"weighting": "madpo", "torch_compile": True}, "`torch_compile` is set to True"),
        ({"weighting": "madpo", "use_liger_kernel": True}, "`use_liger_kernel` is set to True"),
        ({"normalize_weight_column": True}, "there is no `weight_column`"),
    ],
)
def test_options(options, part):
    with pytest.raises(ValueError, match=part):
        config(**options)


def test_json_and_lists_from_the_command_line():
    made = config(loss_type="rpo", loss_kwargs='{"rpo": {"eta": 0.5}}')
    assert made.loss_type == ["rpo"]
    assert made.loss_kwargs == {"rpo": {"eta": 0.5}}


def test_single_examples_are_not_weighed_by_margins():
    with pytest.raises(ValueError, match="'madpo', which weighs preference pairs by their reward margin"):
        hf_gradkit.SFTConfig("out", weighting="madpo", use_cpu=True, bf16=False)


def ours(policy, tmp_path, data, **options):
    return dpo(hf_gradkit.DPOTrainer, DPOConfig, policy, tmp_path, data, **options)


def test_missing_margins(policy, tmp_path):
    data = pairs(8).add_column("reward_margins", [1.0] * 8)
    with pytest.raises(
        ValueError, match=r"no column 'reward_margin' with reward margins. Did you mean 'reward_margins'"
    ):
        ours(policy, tmp_path, data, weighting="madpo")


@pytest.mark.parametrize(
    ("bad", "part"), [(float("nan"), "nan .* is not finite"), (float("inf"), "inf"), (None, "None .* is not a number")]
)
def test_bad_margins(bad, part, policy, tmp_path):
    rows = make_pairs(8)
    rows[5]["reward_margin"] = bad
    with pytest.raises(ValueError, match="Row 5 has " + part):
        ours(policy, tmp_path, Dataset.from_list(rows), weighting="madpo")
    assert not (tmp_path / "trainer_state.json").exists()


def test_margins_that_cannot_be_calibrated(policy, tmp_path):
    data = pairs(8).add_column("reward_margin", [1.0] * 8)
    with pytest.raises(ValueError, match=r"not one speaks against its label.*calibrate=False"):
        ours(policy, tmp_path, data, weighting="madpo")


def test_margins_that_look_memorised_are_told(policy, tmp_path, caplog):
    for factor, told in ((1.0, 0), (0.1, 1)):
        caplog.clear()
        margins = [factor * (3.0 if i % 4 else -3.0) for i in range(8)]  # t is factor * 3 / ln 3
        ours(policy, tmp_path, pairs(8).add_column("reward_margin", margins), weighting="madpo")
        assert caplog.text.count("below 1, which makes them larger") == told


def test_empty_answers(policy, tmp_path):
    rows = make_pairs(8)
    rows[3]["rejected"] = "  "
    with pytest.raises(ValueError, match="Row 3 of the training data has an empty 'rejected'"):
        ours(policy, tmp_path, Dataset.from_list(rows), weighting="madpo")


def test_an_answer_without_a_token():
    rows = [{"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3] * i, INDEX: 10 + i} for i in (2, 1, 0)]
    with pytest.raises(ValueError, match="Row 10 of the training data has no token in 'rejected'"):
        check_prepared_pairs(Dataset.from_list(rows), 32)


def test_identical_answers_are_counted(policy, tmp_path, caplog):
    rows = make_pairs(8)
    for i in (2, 6):
        rows[i]["chosen"] = rows[i]["rejected"]
    with caplog.at_level(logging.WARNING):
        ours(policy, tmp_path, Dataset.from_list(rows), weight_column="weight")
    assert "2 of 8 pairs have the same chosen and rejected" in caplog.text


def test_long_pairs_are_counted(policy, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        trainer = ours(policy, tmp_path, pairs(26, "weight"), weight_column="weight", max_length=14)
    longest = [
        len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in trainer.train_dataset
    ]
    expected = sum(n > 14 for n in longest)
    assert 0 < expected < 26
    assert f"{expected} of {len(longest)} pairs are longer than `max_length` (14)" in caplog.text


def test_a_reward_model_that_is_not_used(policy, tmp_path):
    with pytest.raises(ValueError, match="A `reward_model` was given, but `weighting` is 'none'"):
        dpo(
            hf_gradkit.DPOTrainer,
            DPOConfig,
            policy,
            tmp_path,
            pairs(8),
            trainer_kwargs={"reward_model": object()},
        )


def test_dropped_pairs_are_counted(tokenizer, policy, tmp_path, caplog):
    data = pairs(26, "weight")
    prompts = [len(tokenizer(row["prompt"])["input_ids"]) for row in data]
    longest = sorted(prompts)[16]
    with caplog.at_level(logging.WARNING):
        trainer = ours(policy, tmp_path, data, weight_column="weight", max_length=longest)
    dropped = 26 - len(trainer.train_dataset)
    assert 0 < dropped < 26
    assert (
        f"{dropped} of 26 pairs are dropped: their prompt alone is as long as `max_length` ({longest})" in caplog.text
    )


def test_a_subclass_that_goes_past_the_weights(policy, tmp_path):
    class Own(hf_gradkit.DPOTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return trl.DPOTrainer.compute_loss(self, model, {k: v for k, v in inputs.items() if k != INFO})

    for steps in (1, 3):
        trainer = dpo(Own, DPOConfig, policy, tmp_path, pairs(26, "weight"), weight_column="weight", max_steps=steps)
        with pytest.raises(RuntimeError, match=r"Own was asked for weights.* does not call `super\(\).compute_loss"):
            trainer.train()


def test_two_reward_models(policy, tmp_path):
    keywords = {"trainer_kwargs": {"reward_model": object()}, "reward_model_name_or_path": "runs/reward"}
    with pytest.raises(ValueError, match="Both a `reward_model` and `reward_model_name_or_path`"):
        ours(policy, tmp_path, pairs(8), weighting="madpo", **keywords)


def test_a_checkpoint_without_beta_dpos_averages(policy, tmp_path, caplog):
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 3}
    train_dpo(hf_gradkit.DPOTrainer, DPOConfig, policy, tmp_path, pairs(26), loss_type=["rpo"], **saving)
    trainer = ours(policy, tmp_path, pairs(26), loss_type=["beta_dpo"], **saving)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert "written without beta-DPO's averages" in caplog.text


def test_a_loss_that_is_not_finite(policy, tmp_path):
    trainer = ours(policy, tmp_path, pairs(8, "weight"), weight_column="weight")
    trainer.model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match="rows"):
        trainer.train()


def test_trls_errors_are_trls(policy, tmp_path):
    with pytest.raises(ValueError, match="same length as `loss_type`"):
        config(loss_type=["sigmoid", "rpo"], loss_weights=[1.0])
    with pytest.raises(ValueError, match="`train_dataset` is required"):
        dpo(hf_gradkit.DPOTrainer, DPOConfig, policy, tmp_path, None)
    assert issubclass(DPOConfig, trl.DPOConfig)
