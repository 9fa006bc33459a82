"""The weighted loss of the plain Trainer: causal models, classifiers, and losses of the user's own."""

import pytest
import torch
import torch.nn.functional as F
import transformers
from datasets import Dataset, Value
from test_neutral_parity import classification_data, classifier

import hf_gradkit
from helpers import last_token_loss, parameter_gap, step_logs, text_dataset, train

NEARLY_UNIFORM = {"temperature": 1e9, "warmup_ratio": 0.0}
STRONG = {"temperature": 0.4, "warmup_ratio": 0.0}


def causal_data(tokenizer) -> Dataset:
    return Dataset.from_dict({"input_ids": tokenizer(list(text_dataset(26)["text"]))["input_ids"]})


def run(trainer, config, tokenizer, path, kind, **options):
    keywords = options.pop("trainer_kwargs", {})
    if kind == "causal":
        dataset = causal_data(tokenizer)
        keywords["data_collator"] = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)
    elif kind == "flattened":
        dataset = causal_data(tokenizer)
        dataset = dataset.add_column("labels", list(dataset["input_ids"]))
        keywords["data_collator"] = transformers.DataCollatorWithFlattening()
    else:
        dataset, keywords["model"] = classification_data(tokenizer), classifier(tokenizer)
    return train(trainer, config, tokenizer, path, dataset, trainer_kwargs=keywords, **options)


@pytest.mark.parametrize("scope", ["micro_batch", "running", "step"])
@pytest.mark.parametrize("kind", ["causal", "flattened", "classification"])
def test_a_high_temperature_is_transformers(kind, scope, tokenizer, tmp_path):
    # For this classifier transformers 5.23 forgets to divide by the accumulation steps: compare without.
    options = {"gradient_accumulation_steps": 1 if kind == "classification" else 2, "max_steps": 5}
    theirs = run(transformers.Trainer, transformers.TrainingArguments, tokenizer, tmp_path / "t", kind, **options)
    ours = run(
        hf_gradkit.Trainer,
        hf_gradkit.TrainingArguments,
        tokenizer,
        tmp_path / "o",
        kind,
        weighting="linupper",
        weighting_kwargs={**NEARLY_UNIFORM, "scope": scope},
        **options,
    )
    assert parameter_gap(theirs, ours) < 2e-6
    assert step_logs(ours, "loss") == pytest.approx(step_logs(theirs, "loss"), rel=1e-5)
    assert step_logs(ours, "loss/unweighted") == pytest.approx(step_logs(theirs, "loss"), rel=1e-5)


@pytest.mark.parametrize("kind", ["causal", "classification"])
def test_step_scope_is_the_same_for_every_split_of_the_step(kind, tokenizer, tmp_path):
    runs = [
        run(
            hf_gradkit.Trainer,
            hf_gradkit.TrainingArguments,
            tokenizer,
            tmp_path / str(batch),
            kind,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=8 // batch,
            weighting="linupper",
            weighting_kwargs={**STRONG, "scope": "step"},
        )
        for batch in (8, 2)
    ]
    assert parameter_gap(*runs) < 2e-6
    assert max(step_logs(runs[0], "weights/max")) > 1.05


@pytest.mark.parametrize("weighting", ["none", "linupper"])
def test_a_loss_of_the_users_own_is_averaged_over_the_step(weighting, tokenizer, tmp_path):
    """Every split of the step gives the same update, and uniform weights give the plain mean's."""
    runs = []
    for batch in (8, 2):
        options = {"weighting": weighting, "group_column": "source"}
        if weighting != "none":
            options["weighting_kwargs"] = {**STRONG, "scope": "step"}
        dataset = causal_data(tokenizer).add_column("source", list("ab" * 13))
        runs.append(
            train(
                hf_gradkit.Trainer,
                hf_gradkit.TrainingArguments,
                tokenizer,
                tmp_path / f"{weighting}{batch}",
                dataset,
                trainer_kwargs={"per_example_loss": last_token_loss},
                per_device_train_batch_size=batch,
                gradient_accumulation_steps=8 // batch,
                learning_rate=0.05,
                **options,
            )
        )
    assert parameter_gap(*runs) < 2e-6
    assert step_logs(runs[0], "loss") == pytest.approx(step_logs(runs[1], "loss"), rel=1e-4)
    if weighting == "linupper":
        assert max(step_logs(runs[0], "weights/max")) > 1.05
    else:
        assert step_logs(runs[0], "loss") == pytest.approx(step_logs(runs[0], "loss/unweighted"), rel=1e-5)


class VectorLoss(torch.nn.Module):
    """A model whose output is a loss for each example, and nothing else."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(4, 1)

    def forward(self, x, y):
        return transformers.modeling_outputs.SequenceClassifierOutput(
            loss=F.mse_loss(self.linear(x)[:, 0], y, reduction="none")
        )


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_model_that_returns_a_loss_for_each_example(accumulation, tmp_path):
    """The gradient is that of the weighted mean over the step, written out by hand."""
    torch.manual_seed(1)
    x, y = torch.randn(8, 4), torch.randn(8)
    dataset = Dataset.from_dict({"x": x.tolist(), "y": y.tolist(), "weight": [0.0, 1.0, 2.0, 3.0] * 2})
    trainer = train(
        hf_gradkit.Trainer,
        hf_gradkit.TrainingArguments,
        None,
        tmp_path,
        dataset.with_format("torch"),
        trainer_kwargs={"model": VectorLoss()},
        max_steps=1,
        per_device_train_batch_size=8 // accumulation,
        gradient_accumulation_steps=accumulation,
        weight_column="weight",
        lr_scheduler_type="constant",
        max_grad_norm=0,
    )
    model = VectorLoss()
    weights = torch.tensor([0.0, 1.0, 2.0, 3.0] * 2)
    (weights * F.mse_loss(model.linear(x)[:, 0], y, reduction="none")).mean().backward()
    expected = model.linear.weight - 0.1 * model.linear.weight.grad
    assert torch.allclose(trainer.model.linear.weight, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("loss", "part"),
    [
        (lambda outputs, inputs: outputs.logits.mean(), r"`per_example_loss` returned \(\) as the loss"),
        (lambda outputs, inputs: outputs.logits.mean((1, 2))[:2], "There are 2 losses for a batch of 4 examples"),
    ],
)
def test_losses_of_the_wrong_shape(loss, part, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=part):
        train(
            hf_gradkit.Trainer,
            hf_gradkit.TrainingArguments,
            tokenizer,
            tmp_path,
            causal_data(tokenizer),
            trainer_kwargs={"per_example_loss": loss},
            weighting="linupper",
        )


def test_regression_says_what_to_pass(tokenizer, tmp_path):
    dataset = classification_data(tokenizer).cast_column("labels", Value("float32"))
    model = classifier(tokenizer)
    with pytest.raises(ValueError, match=r"Pass `per_example_loss\(outputs"):
        train(
            hf_gradkit.Trainer,
            hf_gradkit.TrainingArguments,
            tokenizer,
            tmp_path,
            dataset,
            trainer_kwargs={"model": model},
            weighting="linupper",
        )


def test_plain_torch_data_set_can_be_weighted(tmp_path):
    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, i):
            return {"x": torch.full((4,), float(i)), "y": torch.tensor(0.0)}

    options = {"trainer_kwargs": {"model": VectorLoss()}, "weighting": "linupper", "weighting_kwargs": STRONG}
    trainer = train(hf_gradkit.Trainer, hf_gradkit.TrainingArguments, None, tmp_path, Rows(), **options)
    assert max(step_logs(trainer, "weights/max")) > 1.05
    with pytest.raises(ValueError, match=r"need a `datasets\.Dataset`"):
        train(
            hf_gradkit.Trainer,
            hf_gradkit.TrainingArguments,
            None,
            tmp_path,
            Rows(),
            trainer_kwargs={"model": VectorLoss()},
            weight_column="weight",
        )


def test_a_loss_of_the_users_own_can_be_normalized_by_weights(tmp_path):
    torch.manual_seed(1)
    x, y = torch.randn(8, 4), torch.randn(8)
    runs = []
    for scale in (1.0, 7.0):
        dataset = Dataset.from_dict(
            {"x": x.tolist(), "y": y.tolist(), "weight": [scale * w for w in (0.5, 1.0, 2.0, 3.0) * 2]}
        )
        runs.append(
            train(
                hf_gradkit.Trainer,
                hf_gradkit.TrainingArguments,
                None,
                tmp_path / str(scale),
                dataset.with_format("torch"),
                trainer_kwargs={"model": VectorLoss()},
                weight_column="weight",
                normalize_weight_column=True,
            )
        )
    assert parameter_gap(*runs) < 1e-6


def test_a_loss_of_the_users_own_counts_with_weighting_off_and_in_evaluation(tokenizer, tmp_path):
    """The uniform baseline optimises the same loss as the weighted run, and both report it on the evaluation set."""
    runs = []
    for name, options in (
        ("off", {}),
        ("flat", {"weighting": "linupper", "weighting_kwargs": {**NEARLY_UNIFORM, "scope": "micro_batch"}}),
    ):
        keywords = {"per_example_loss": last_token_loss, "eval_dataset": causal_data(tokenizer)}
        runs.append(
            train(
                hf_gradkit.Trainer,
                hf_gradkit.TrainingArguments,
                tokenizer,
                tmp_path / name,
                causal_data(tokenizer),
                trainer_kwargs=keywords,
                eval_strategy="steps",
                eval_steps=2,
                **options,
            )
        )
    assert step_logs(runs[0], "loss") == pytest.approx(step_logs(runs[1], "loss"), rel=1e-5)
    evaluations = [[e["eval_loss"] for e in run.state.log_history if "eval_loss" in e] for run in runs]
    assert evaluations[0] == pytest.approx(evaluations[1], rel=1e-5)
    assert len(evaluations[0]) == 2
    assert evaluations[0][1] < evaluations[0][0]


def test_a_loss_of_the_users_own_needs_no_arguments_of_ours(tokenizer, tmp_path):
    trainer = train(
        hf_gradkit.Trainer,
        transformers.TrainingArguments,
        tokenizer,
        tmp_path,
        causal_data(tokenizer),
        trainer_kwargs={"per_example_loss": last_token_loss},
    )
    assert step_logs(trainer, "loss") == pytest.approx(step_logs(trainer, "loss/unweighted"), rel=1e-5)


def test_the_class_label_can_be_the_group(tokenizer, tmp_path):
    keywords = {"model": classifier(tokenizer), "eval_dataset": classification_data(tokenizer)}
    trainer = train(
        hf_gradkit.Trainer,
        hf_gradkit.TrainingArguments,
        tokenizer,
        tmp_path,
        classification_data(tokenizer),
        trainer_kwargs=keywords,
        group_column="labels",
        per_device_train_batch_size=26,
        eval_strategy="steps",
        eval_steps=4,
    )
    assert {key for key in trainer.state.log_history[0] if key.startswith("group_loss/")} == {
        "group_loss/0",
        "group_loss/1",
        "group_loss/2",
    }
    assert any("eval_loss" in entry for entry in trainer.state.log_history)
