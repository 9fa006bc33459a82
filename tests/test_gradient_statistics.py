"""Statistics of examples' gradients: against autograd of one example at a time, on every trainer, and resumed."""

import json

import pytest
import torch
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, DataCollatorForLanguageModeling

import hf_gradkit
from helpers import make_trainer, parameter_gap, step_logs, text_dataset, train
from hf_gradkit import GradientStatisticsCallback
from hf_gradkit.callbacks.step_examples import ExampleNames, token_hash
from hf_gradkit.gradients.statistics import NoiseSums, OutlierRule, add_group_sums, group_cosines, group_sums
from hf_gradkit.reporting.gradient_statistics import read_statistics
from hf_gradkit.reporting.page import write_report
from pair_helpers import OURS, THEIRS, dpo, pairs

WATCHED = {"monitors": ["gradient_statistics"], "monitor_steps": 1}
SFT = (hf_gradkit.SFTTrainer, hf_gradkit.SFTConfig)

# ---- maths ----------------------------------------------------------------------------------------------------------


def test_the_noise_scale_of_gaussians():
    """Examples drawn around a mean of length 2 with a spread of 3 in each of 50 coordinates: B = 450 / 4."""
    torch.manual_seed(0)
    mean = torch.zeros(50, dtype=torch.float64)
    mean[0] = 2.0
    sums = NoiseSums()
    for _ in range(1000):  # micro-batches of 32
        g = mean + 3.0 * torch.randn(32, 50, dtype=torch.float64)
        sums = sums + NoiseSums.of(g @ g.T)
    assert sums.noise_scale == pytest.approx(450 / 4, rel=0.05)
    assert NoiseSums.of(torch.eye(3)).noise_scale is None  # nothing in common: the mean may be zero
    assert NoiseSums.of(torch.ones(1, 1)).noise_scale is None  # one example says nothing


def test_noise_sums_by_hand():
    sums = NoiseSums.of(torch.tensor([[2.0, 1.0], [1.0, 4.0]])) + NoiseSums.of(torch.tensor([[3.0]]))
    assert sums == NoiseSums(squares=9.0, examples=3, products=2.0, pairs=2)
    assert sums.noise_scale == 2.0


def test_cosines_of_sources_are_those_of_their_means():
    torch.manual_seed(0)
    means = {"a": torch.tensor([1.0, 0, 0]), "b": torch.tensor([-1.0, 1, 0]), "c": torch.tensor([0, 0, 2.0])}
    parts = []
    for _ in range(3000):
        names = [["a", "b", "c"][i] for i in torch.randint(3, (6,))]
        g = torch.stack([means[name] + torch.randn(3) for name in names])
        parts.append(group_sums(g @ g.T, names))
    cosines = group_cosines(add_group_sums(parts))
    assert set(cosines) == {("a", "b"), ("a", "c"), ("b", "c")}
    assert cosines["a", "b"] == pytest.approx(-(0.5**0.5), abs=0.05)
    assert cosines["a", "c"] == pytest.approx(0.0, abs=0.05)


def test_group_sums_by_hand():
    gram = torch.tensor([[1.0, 2, 3], [2, 4, 5], [3, 5, 9]])
    assert group_sums(gram, ["x", "y", "x"]) == {("x", "x"): (6.0, 2), ("x", "y"): (7.0, 2)}


def test_cosines_from_few_examples():
    """An estimate outside [-1, 1] is cut off; a source whose own length is not known yet has none."""
    own = {("a", "a"): (2.0, 2), ("b", "b"): (2.0, 2)}
    for product, cosine in ((9.0, 1.0), (-9.0, -1.0), (0.5, 0.25)):
        assert group_cosines({**own, ("a", "b"): (product, 2)}) == {("a", "b"): cosine}
    for unknown in (-2.0, 0.0):
        assert group_cosines({**own, ("a", "a"): (unknown, 2), ("a", "b"): (1.0, 2)}) == {}


def test_outliers():
    norms = torch.cat([torch.linspace(0.9, 1.1, 50), torch.tensor([2.0, 40.0])])
    threshold = OutlierRule().threshold(norms)
    assert 2.9 < threshold < 4.0  # three times the median: such norms hardly spread
    assert OutlierRule().threshold(norms[:10]) is None
    spread = torch.logspace(-2, 2, 101, dtype=torch.float64)
    # half of the logarithms are within log 10 of their median, which is zero
    assert OutlierRule().threshold(spread) == pytest.approx(10 ** (5 * 1.4826), rel=1e-6)
    unpulled = torch.cat([spread, torch.zeros(200)])  # examples without a gradient say nothing
    assert OutlierRule().threshold(unpulled) == pytest.approx(OutlierRule().threshold(spread), rel=1e-6)
    assert OutlierRule().threshold(unpulled[80:]) is None


# ---- against one example at a time ----------------------------------------------------------------------------------


def gradients_one_by_one(trainer, batch):
    """The gradient of each example's share of the step's mean, times the number of examples."""
    model, rows = trainer.model, []
    tokens = (batch["labels"][:, 1:] != -100).sum()
    for i in range(len(batch["input_ids"])):
        model.zero_grad()
        logits = model(batch["input_ids"][[i]], batch["attention_mask"][[i]]).logits[:, :-1].double()
        target = batch["labels"][[i], 1:]
        picked = logits.log_softmax(-1).gather(2, target.clamp(min=0)[..., None])[..., 0]
        (-(picked * (target != -100)).sum() / tokens).backward()
        rows.append(torch.cat([p.grad.double().flatten() for p in model.parameters()]))
    model.zero_grad()
    return torch.stack(rows) * len(rows)


def test_figures_are_those_of_each_example_alone(tokenizer, tmp_path):
    data = text_dataset(8, "source", "uid")
    options = {"per_device_train_batch_size": 8, "max_steps": 1, "group_column": "source", "example_id_column": "uid"}
    trainer = make_trainer(*SFT, tokenizer, tmp_path, data, **WATCHED, **options)
    batch = dict(next(iter(trainer.get_train_dataloader())))
    groups = batch.pop("example_info").group
    g = gradients_one_by_one(trainer, batch)
    trainer.train()
    line = json.loads((tmp_path / "gradient_statistics.jsonl").read_text())
    norms = g.norm(dim=1)
    assert sorted(line["norms"]) == pytest.approx(sorted(norms.tolist()), rel=1e-4)
    assert line["gradients/norm_max"] == pytest.approx(norms.max().item(), rel=1e-4)
    gram = g @ g.T
    signal = (gram.sum() - gram.diagonal().sum()) / 56
    noise = (gram.diagonal().mean() - signal) / signal
    assert line["gradients/noise_scale"] == pytest.approx(noise.item(), rel=1e-3)
    assert line["gradients/norm_test_batch"] == pytest.approx(4 * noise.item(), rel=1e-3)
    expected = group_cosines(group_sums(gram, groups))
    found = {key: value for key, value in line.items() if key.startswith("gradients/cosine/")}
    assert found == pytest.approx({f"gradients/cosine/{a}|{b}": value for (a, b), value in expected.items()}, rel=1e-3)
    assert len(found) == 3


def test_a_pair_is_one_example(policy, tmp_path):
    """Its norm is what the trainer itself says of a step with that pair alone."""
    options = {"learning_rate": 0.0, "max_grad_norm": 1.0}
    alone = dpo(*THEIRS, policy, tmp_path / "a", pairs(8), per_device_train_batch_size=1, max_steps=8, **options)
    alone.train()
    together = dpo(*THEIRS, policy, tmp_path / "b", pairs(8), per_device_train_batch_size=8, max_steps=1, **options)
    together.add_callback(GradientStatisticsCallback(trainer=together))
    together.train()
    (line,) = read_statistics(tmp_path / "b")
    assert sorted(line["norms"]) == pytest.approx(sorted(step_logs(alone, "grad_norm")), rel=1e-3)


def test_figures_do_not_depend_on_the_split(tokenizer, tmp_path):
    """(8, 1), (4, 2) and, with products from projections, (1, 8)."""

    def run(size, **keywords):
        split = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size, "max_steps": 3}
        trainer = make_trainer(*SFT, tokenizer, tmp_path / str(size), text_dataset(64), **split)
        trainer.add_callback(GradientStatisticsCallback(trainer=trainer, **keywords))
        trainer.train()
        return trainer

    runs = [run(8), run(4), run(1, projections=4096)]
    for name in ("norm_mean", "norm_median", "norm_max", "batch"):
        key = f"gradients/{name}"
        for other in runs[1:]:
            assert step_logs(other, key) == pytest.approx(step_logs(runs[0], key), rel=1e-3), name
    # exact products, but of the examples within a micro-batch only; estimated ones of all
    assert step_logs(runs[2], "gradients/noise_scale") == pytest.approx(
        step_logs(runs[0], "gradients/noise_scale"), rel=0.2
    )


def test_packed_documents_are_examples(tokenizer, tmp_path):
    data = text_dataset(64, "uid")
    options = {"per_device_train_batch_size": 1, "packing": True, "max_length": 64, "max_steps": 2}
    make_trainer(*SFT, tokenizer, tmp_path, data, example_id_column="uid", **options, **WATCHED).train()
    lines = read_statistics(tmp_path)
    assert all(line["gradients/batch"] > 2 for line in lines)
    assert all(line["gradients/norm_max"] > 0 for line in lines)


# ---- on any trainer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sft", "plain", "trl dpo", "dpo", "reward"])
def test_watching_leaves_the_training_as_it_was(kind, tokenizer, policy, tmp_path):
    def run(folder, **options):
        if kind == "sft":
            return train(*SFT, tokenizer, folder, text_dataset(26), **options)
        if kind == "plain":
            data = text_dataset(26).map(lambda row: tokenizer(row["text"]), remove_columns="text")
            keywords = {"data_collator": DataCollatorForLanguageModeling(tokenizer, mlm=False)}
            classes = (hf_gradkit.Trainer, hf_gradkit.TrainingArguments)
            return train(*classes, tokenizer, folder, data, trainer_kwargs=keywords, **options)
        classes = {"trl dpo": THEIRS, "dpo": OURS, "reward": (hf_gradkit.RewardTrainer, hf_gradkit.RewardConfig)}[kind]
        watch = options.pop("monitors", None) if kind == "trl dpo" else None
        steps = options.pop("monitor_steps", 1) if kind == "trl dpo" else 1
        trainer = dpo(*classes, policy, folder, pairs(26), **options)
        if watch:
            trainer.add_callback(GradientStatisticsCallback(monitor_steps=steps, trainer=trainer))
        trainer.train()
        return trainer

    plain = run(tmp_path / "a")
    seen = run(tmp_path / "b", monitors=["gradient_statistics"], monitor_steps=1)
    assert parameter_gap(plain, seen) < 2e-6
    norms = step_logs(seen, "gradients/norm_mean")
    assert len(norms) == 4
    assert all(norm > 0 for norm in norms)
    assert step_logs(seen, "gradients/batch")[0] == seen.args.per_device_train_batch_size
    assert (tmp_path / "b" / "gradient_statistics.png").read_bytes().startswith(b"\x89PNG")
    seen.save_state()
    assert "Gradients of examples" in write_report([tmp_path / "b"]).read_text()


def test_an_outlier_is_named(tokenizer, tmp_path):
    """By its id on our trainers, by the hash of its tokens on others."""
    rows = text_dataset(64, "uid").to_list()
    rows[40]["text"] = " zq" * 60
    options = {"per_device_train_batch_size": 8, "max_steps": 8, "learning_rate": 0.0}
    data, named = Dataset.from_list(rows), {"example_id_column": "uid", **WATCHED}
    ours = make_trainer(*SFT, tokenizer, tmp_path / "a", data, **options, **named)
    theirs = make_trainer(trl.SFTTrainer, trl.SFTConfig, tokenizer, tmp_path / "b", data, **options)
    theirs.add_callback(GradientStatisticsCallback())
    expected = {"a": rows[40]["uid"], "b": None}
    for folder, trainer in (("a", ours), ("b", theirs)):
        trainer.train()
        lines = [
            json.loads(line) for line in (tmp_path / folder / "gradient_statistics.jsonl").read_text().splitlines()
        ]
        named = [name for line in lines for name, _, _ in line["outliers"]]
        if expected[folder] is None:
            ids = [ids for ids in trainer.train_dataset["input_ids"] if len(ids) > 60]
            expected[folder] = token_hash(ids[0])
        assert named == [expected[folder]]


def test_examples_are_named_by_their_tokens_without_padding(policy):
    model = AutoModelForCausalLM.from_pretrained(policy)
    ids = torch.tensor([[0, 5, 6], [7, 8, 9], [4, 0, 0], [5, 6, 0]])
    mask = torch.tensor([[0, 1, 1], [1, 1, 1], [1, 0, 0], [1, 1, 0]])
    for pairs_of_rows, expected in ((False, [[5, 6], [7, 8, 9], [4], [5, 6]]), (True, [[5, 6, 4], [7, 8, 9, 5, 6]])):
        names = ExampleNames(model, None, pairs_of_rows)
        model(input_ids=ids, attention_mask=mask)
        with torch.no_grad():
            model(input_ids=ids[:2])  # a reference's forward
        names.close()
        assert names.of(0, len(expected)) == ([token_hash(row) for row in expected], None)
        assert names.of(0, 3) == (["unknown"] * 3, None)


def test_a_resumed_run_goes_on_with_its_window(tokenizer, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6, "group_column": "source"}
    data = text_dataset(26, "source")
    whole = train(*SFT, tokenizer, tmp_path, data, **options, **WATCHED)
    before = (tmp_path / "gradient_statistics.jsonl").read_text()
    with (tmp_path / "gradient_statistics.jsonl").open("a") as file:
        file.write('{"step": 7, "gra')  # a killed process's last line
    again = train(*SFT, tokenizer, tmp_path, data, resume=str(tmp_path / "checkpoint-3"), **options, **WATCHED)
    assert (tmp_path / "gradient_statistics.jsonl").read_text() == before
    assert step_logs(again, "gradients/noise_scale") == step_logs(whole, "gradients/noise_scale")


# ---- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"monitor_steps": 0}, "`monitor_steps` must be a whole number of at least 1, but it is 0"),
        ({"window": 0}, "`window` must be a whole number of at least 1, but it is 0"),
        ({"norm_test_eta": 0.0}, "`norm_test_eta` must be above 0 and at most 1, but it is 0"),
        ({"projections": 1}, "`projections` must be a whole number of at least 2, but it is 1"),
    ],
)
def test_bad_options(options, part):
    with pytest.raises(ValueError, match=part):
        GradientStatisticsCallback(**options)


def test_a_monitor_that_a_trainer_does_not_have():
    with pytest.raises(
        ValueError, match=r"`monitors` has 'entanglement', which SFTConfig does not know.*It knows: 'gra"
    ):
        hf_gradkit.SFTConfig("out", monitors=["entanglement"], use_cpu=True, bf16=False)
