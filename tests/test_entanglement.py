"""The entanglement monitor on any trainer: what it leaves as it was, where its figures go, and what it refuses."""

import json

import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig

import hf_gradkit
from helpers import make_trainer, parameter_gap, step_logs, text_dataset
from hf_gradkit import EntanglementCallback
from hf_gradkit.callbacks.watched_pairs import WatchedPairs
from hf_gradkit.gradients import GradientRecordError, record_gradients
from hf_gradkit.gradients.projections import estimate
from hf_gradkit.reporting.page import write_report
from pair_helpers import OURS, THEIRS, dpo, pairs, train_dpo


def watched(classes, policy, folder, data, keywords=None, callback=None, **options):
    trainer = dpo(*classes, policy, folder, data, trainer_kwargs=keywords, **options)
    trainer.add_callback(callback or EntanglementCallback())
    trainer.train()
    return trainer


def figure(trainer, name):
    return step_logs(trainer, f"entanglement/{name}")


# ---- on any trainer -------------------------------------------------------------------------------------------------


def test_watching_leaves_the_training_as_it_was(policy, tmp_path):
    plain = train_dpo(*THEIRS, policy, tmp_path / "a", pairs(26))
    seen = watched(THEIRS, policy, tmp_path / "b", pairs(26))
    assert parameter_gap(plain, seen) < 1e-6
    assert step_logs(seen, "loss") == pytest.approx(step_logs(plain, "loss"), rel=1e-5)
    assert len(figure(seen, "cosine")) == 4


def test_figures_do_not_depend_on_the_split(policy, tmp_path):
    """The mean over the pairs of a step, and norms of a pair's own loss, for (8, 1), (4, 2) and (2, 4)."""
    runs = [
        watched(
            THEIRS,
            policy,
            tmp_path / str(size),
            pairs(26),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
            max_steps=3,
        )
        for size in (8, 4, 2)
    ]
    for name in ("cosine", "norm_ratio", "chosen_norm", "rejected_norm", "ideal", "chosen_rises"):
        for run in runs[1:]:
            assert figure(run, name) == pytest.approx(figure(runs[0], name), rel=1e-3, abs=1e-5), name


def test_an_epoch_whose_last_step_has_fewer_micro_batches(policy, tmp_path):
    """12 pairs in micro-batches of 4, two a step: the second step has one, whose loss is not halved."""
    split = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    runs = [
        watched(THEIRS, policy, tmp_path / str(i), pairs(12), max_steps=2, **options)
        for i, options in enumerate([split, {"per_device_train_batch_size": 8}])
    ]
    for name in ("chosen_norm", "rejected_norm", "cosine"):
        assert figure(runs[0], name) == pytest.approx(figure(runs[1], name), rel=1e-3), name


@pytest.mark.parametrize(
    "options",
    [
        {"activation_checkpointing": True},
        {"precompute_ref_log_probs": True},
        {"bf16": True},
    ],
    ids=str,
)
def test_figures_under_options(options, policy, tmp_path):
    plain = watched(THEIRS, policy, tmp_path / "a", pairs(26), max_steps=2)
    other = watched(THEIRS, policy, tmp_path / "b", pairs(26), max_steps=2, **options)
    tolerance = 0.1 if options.get("bf16") else 1e-3
    for name in ("cosine", "norm_ratio", "chosen_norm"):
        assert figure(other, name) == pytest.approx(figure(plain, name), rel=tolerance, abs=tolerance / 10)


@pytest.mark.parametrize("classes", [THEIRS, OURS], ids=["trl", "ours"])
def test_lora(classes, policy, tmp_path):
    keywords = {"peft_config": LoraConfig(r=4, target_modules="all-linear")}
    trainer = watched(classes, policy, tmp_path, pairs(26), keywords, learning_rate=1.0)
    assert figure(trainer, "coverage") == [1.0] * 4
    assert all(value > 0 for value in figure(trainer, "chosen_norm"))


def test_weights_of_pairs_leave_cosine_and_ratio(policy, tmp_path):
    """They scale both gradients of a pair."""
    data = pairs(26).add_column("w", [0.25 + i % 4 for i in range(26)])
    plain = watched(OURS, policy, tmp_path / "a", data, max_steps=1)
    weighted = watched(OURS, policy, tmp_path / "b", data, max_steps=1, weight_column="w")
    lines = [json.loads((tmp_path / name / "entanglement.jsonl").read_text())["pairs"] for name in "ab"]
    for (cosine, ratio), (expected_cosine, expected_ratio) in zip(sorted(lines[1]), sorted(lines[0]), strict=True):
        assert cosine == pytest.approx(expected_cosine, abs=1e-4)
        assert ratio == pytest.approx(expected_ratio, rel=1e-3)
    assert figure(plain, "chosen_norm") != pytest.approx(figure(weighted, "chosen_norm"), rel=0.01)


def test_every_so_many_steps_and_in_the_trackers_with_the_trainer(policy, tmp_path):
    class Tracker(trl.trainer.dpo_trainer.TrainerCallback):
        def __init__(self):
            self.seen = []

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.seen.append(dict(logs))

    tracker = Tracker()
    trainer = dpo(*THEIRS, policy, tmp_path, pairs(26), max_steps=6, trainer_kwargs={"callbacks": [tracker]})
    trainer.add_callback(EntanglementCallback(monitor_steps=3, trainer=trainer))
    trainer.train()
    steps = [entry["step"] for entry in trainer.state.log_history if "entanglement/cosine" in entry]
    assert steps == [1, 4]
    assert sum("entanglement/cosine" in logs for logs in tracker.seen) == 2
    lines = [json.loads(line) for line in (tmp_path / "entanglement.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 4]


def test_a_resumed_run_repeats_no_line(policy, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 5}
    watched(THEIRS, policy, tmp_path, pairs(26), **saving)
    before = (tmp_path / "entanglement.jsonl").read_text()
    trainer = dpo(*THEIRS, policy, tmp_path, pairs(26), **saving)
    trainer.add_callback(EntanglementCallback())
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    after = (tmp_path / "entanglement.jsonl").read_text()
    steps = [json.loads(line)["step"] for line in after.splitlines()]
    assert steps == [1, 2, 3, 4, 5]
    assert after.splitlines()[:2] == before.splitlines()[:2]


def test_one_warning_when_most_pairs_fall_together(policy, tmp_path, caplog):
    """Pairs that share nearly everything: the longer gradient drags the other along."""
    rows = [{"prompt": " the cat", "chosen": " sat", "rejected": " sat sat sat sat sat sat sat"}] * 16
    trainer = watched(THEIRS, policy, tmp_path, Dataset.from_list(rows), max_steps=3)
    assert figure(trainer, "both_fall") == [1.0] * 3
    assert figure(trainer, "norm_ratio")[0] > 1 / figure(trainer, "cosine")[0] > 1
    assert step_logs(trainer, "logps/chosen")[-1] < step_logs(trainer, "logps/chosen")[0]
    assert caplog.text.count("their gradients are entangled") == 1


# ---- the direction of the whole step --------------------------------------------------------------------------------


def test_the_step_over_micro_batches_is_estimated(policy, tmp_path, monkeypatch):
    """(8, 1) has every product exactly; (2, 4) estimates most of them, and knows how well."""
    tables = []
    original = WatchedPairs.table

    def keep(self, summed):
        tables.append((self, summed))
        return original(self, summed)

    def run(name, size, projections):
        tables.clear()
        callback = EntanglementCallback(direction="step", projections=projections)
        split = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
        trainer = watched(THEIRS, policy, tmp_path / name, pairs(8), callback=callback, max_steps=1, **split)
        along, error = [], []
        for batch, summed in tables:
            rest = (batch.along, batch.along)
            if summed is not None:
                rest = estimate(batch.projections, summed - batch.projections.sum(0))
                rest = (batch.along + rest[0], rest[1])
            half = len(batch.products)
            along.append(rest[0].view(2, half))
            error.append(rest[1].view(2, half))
        return trainer, torch.cat(along, 1), torch.cat(error, 1)

    monkeypatch.setattr(WatchedPairs, "table", keep)
    exact, products, _ = run("exact", 8, 2)
    assert figure(exact, "uncertain") == figure(exact, "step_error") == []
    few, found, error = run("few", 2, 256)
    deviations = (found - products) / error
    assert deviations.abs().max() < 4
    assert 0.5 < deviations.square().mean().sqrt() < 2
    assert figure(few, "uncertain")[0] >= 0
    many = run("many", 2, 4096)[0]
    assert figure(many, "step_error")[0] == pytest.approx(figure(few, "step_error")[0] / 4, rel=0.25)


@pytest.mark.parametrize("options", [{}, {"activation_checkpointing": True}], ids=str)
def test_what_was_predicted_is_observed_after_the_step(options, policy, tmp_path):
    callback = EntanglementCallback(direction="step", observe=True)
    small = {"learning_rate": 1e-3, "lr_scheduler_type": "constant", "per_device_train_batch_size": 8, "beta": 0.5}
    trainer = watched(THEIRS, policy, tmp_path, pairs(64), callback=callback, max_steps=8, **small, **options)
    agreement = figure(trainer, "agreement")
    assert sum(agreement) / len(agreement) >= 0.99
    assert figure(trainer, "observed_chosen_rises") == pytest.approx(figure(trainer, "chosen_rises"), abs=0.13)
    plain = train_dpo(*THEIRS, policy, tmp_path / "plain", pairs(64), max_steps=8, **small, **options)
    assert parameter_gap(plain, trainer) < 1e-6


def test_dropout_hides_the_same_units_in_the_forward_after_the_step(policy, tmp_path):
    """With a learning rate of zero nothing may have changed."""
    seen = []

    class Callback(EntanglementCallback):
        def _report(self, args, step, model):
            seen.append(max(forward.changes(model).abs().max().item() for forward in self._forwards.forwards))

    options = {"learning_rate": 0.0, "disable_dropout": False, "model_init_kwargs": {"attention_dropout": 0.3}}
    trainer = watched(THEIRS, policy, tmp_path, pairs(26), callback=Callback(observe=True), max_steps=2, **options)
    assert trainer.model.config.attention_dropout == 0.3
    assert seen == [0.0, 0.0]


def test_two_monitors_share_one_recording(policy, tmp_path):
    """Of different needs and rhythms; each sees what it sees alone, and nothing stays on the model."""
    alone = watched(THEIRS, policy, tmp_path / "alone", pairs(64), max_steps=6)
    trainer = dpo(*THEIRS, policy, tmp_path / "both", pairs(64), max_steps=6)
    step = EntanglementCallback(direction="step", monitor_steps=2)
    step.figures._name = "step"
    trainer.add_callback(EntanglementCallback())
    trainer.add_callback(step)
    trainer.train()

    def lines(folder, name):
        return [json.loads(line) for line in (tmp_path / folder / f"{name}.jsonl").read_text().splitlines()]

    assert [line["step"] for line in lines("both", "step")] == [1, 3, 5]
    assert [line["pairs"] for line in lines("both", "entanglement")] == [
        [pytest.approx(pair, abs=1e-5) for pair in line["pairs"]] for line in lines("alone", "entanglement")
    ]
    assert len(figure(alone, "cosine")) == 6
    assert not trainer.model._forward_pre_hooks
    assert "forward" not in vars(trainer.model.model.layers[0].self_attn.q_proj)


# ---- from a configuration, and the picture --------------------------------------------------------------------------


def test_the_monitor_of_a_configuration(policy, tmp_path):
    trainer = train_dpo(*OURS, policy, tmp_path, pairs(26), monitors=["entanglement"], monitor_steps=2)
    trainer.save_state()
    assert [entry["step"] for entry in trainer.state.log_history if "entanglement/cosine" in entry] == [1, 3]
    picture = (tmp_path / "entanglement.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 10_000
    page = write_report([tmp_path]).read_text()
    assert "Gradient entanglement" in page
    plain = train_dpo(*OURS, policy, tmp_path / "plain", pairs(26))
    plain.save_state()
    assert "Gradient entanglement" not in write_report([tmp_path / "plain"]).read_text()
    with pytest.raises(
        ValueError, match=r"`monitors` has 'entanglment', which DPOConfig does not know\. Did you mean"
    ):
        hf_gradkit.DPOConfig("out", monitors=["entanglment"], use_cpu=True, bf16=False)
    with pytest.raises(ValueError, match="`monitor_steps` must be a whole number"):
        hf_gradkit.DPOConfig("out", monitors=["entanglement"], monitor_steps=0, use_cpu=True, bf16=False)


# ---- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"monitor_steps": 0}, "`monitor_steps` must be a whole number of at least 1, but it is 0"),
        ({"monitor_steps": True}, "`monitor_steps` must be"),
        ({"direction": "sideways"}, "`direction` must be 'pair' or 'step', but it is 'sideways'"),
        ({"projections": 1}, "`projections` must be a whole number of at least 2, but it is 1"),
    ],
)
def test_bad_options(options, part):
    with pytest.raises(ValueError, match=part):
        EntanglementCallback(**options)


def test_what_the_monitor_refuses(policy, tmp_path):
    with pytest.raises(ValueError, match=r"`ld_alpha` is 0\.5"):
        watched(THEIRS, policy, tmp_path, pairs(8), ld_alpha=0.5)


def test_a_trainer_without_pairs(tokenizer, tmp_path):
    trainer = make_trainer(trl.SFTTrainer, trl.SFTConfig, tokenizer, tmp_path, text_dataset(26))
    trainer.args.per_device_train_batch_size = 3
    trainer._train_batch_size = 3
    trainer.add_callback(EntanglementCallback())
    with pytest.raises(GradientRecordError, match="3 rows, an odd number"):
        trainer.train()
    assert "forward" not in vars(trainer.model.model.layers[0].self_attn.q_proj)


def test_hooks_are_gone_after_an_error(policy, tmp_path):
    trainer = dpo(*THEIRS, policy, tmp_path, pairs(8))
    with pytest.raises(RuntimeError, match="stop here"), record_gradients(trainer.model):
        raise RuntimeError("stop here")
    assert not trainer.model._forward_pre_hooks
    assert all("forward" not in vars(m) for m in trainer.model.modules() if m is not trainer.model)
    with (
        record_gradients(trainer.model),
        pytest.raises(GradientRecordError, match="being recorded already"),
        record_gradients(trainer.model),
    ):
        pass
