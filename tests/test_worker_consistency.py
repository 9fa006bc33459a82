"""The consistency monitor on real processes: exact figures, no false alarm, and every planted fault found."""

import json
import math
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers import make_trainer, text_dataset
from hf_gradkit import WorkerConsistencyCallback
from hf_gradkit.callbacks.shard_check import ShardCheck, row_hashes
from launch import launch

WORKER = Path(__file__).parent / "workers" / "consistency_cases.py"

# ---- what the workers were given ------------------------------------------------------------------------------------


def test_hashes_are_of_tokens_and_not_of_padding():
    ids = torch.tensor([[5, 6, 7, 0], [5, 6, 7, 9]])
    plain = row_hashes(ids[:, :3], None)
    assert plain[0] == plain[1]
    assert row_hashes(ids, torch.tensor([[1, 1, 1, 0]] * 2))[0] == plain[0]
    assert (
        row_hashes(ids.flip(1).roll(0), torch.tensor([[0, 1, 1, 1]] * 2))[0]
        == row_hashes(torch.tensor([[7, 6, 5]]), None)[0]
    )
    assert row_hashes(torch.tensor([[6, 5, 7]]), None)[0] != plain[0]
    flat = torch.tensor([[5, 6, 7, 6, 5, 0]])
    documents = torch.tensor([0, 0, 0, 1, 1, -1])
    assert row_hashes(flat, None, documents).tolist() == [
        plain[0].item(),
        row_hashes(torch.tensor([[6, 5]]), None).item(),
    ]


def test_an_example_that_two_workers_see_is_one_example():
    check = ShardCheck(2)
    check.add([[1, 2], [2, 3]])
    check.add([[1, 4], [5, 5]])
    assert check.distinct == 5


@pytest.mark.parametrize(("copies", "steps"), [(1, 20), (4, 64)], ids=["all different", "every row four times"])
def test_repeats_between_workers(copies, steps):
    """Healthy shards of data that repeats rows are no finding; shuffles of their own are."""
    generator = torch.Generator().manual_seed(0)
    data = torch.arange(1024) // copies

    def orders(own):
        if own:
            return [data[torch.randperm(1024, generator=generator)] for _ in range(2)]
        order = data[torch.randperm(1024, generator=generator)]
        return [order[0::2], order[1::2]]

    for own in (False, True):
        shards, check, found = orders(own), ShardCheck(2), []
        for step in range(steps):
            check.add([shard[8 * step : 8 * step + 8].tolist() for shard in shards])
            found.append(check.finding())
        assert (found[-1] is not None) == own
        assert own or found == [None] * steps
    assert "a seed of its own" in found[-1].cause
    first, second = (set(shard[: 8 * steps].tolist()) for shard in shards)
    assert found[-1].examples == len(first & second)


# ---- real processes -------------------------------------------------------------------------------------------------

STEPS = {"max_steps": 20, "per_device_train_batch_size": 8}
TWICE = {**STEPS, "gradient_accumulation_steps": 2}
ONE = {"max_steps": 1, "per_device_train_batch_size": 4}
SHORT = {"max_steps": 6, "per_device_train_batch_size": 8}
PACKED = {"packing": True, "max_length": 64, "per_device_train_batch_size": 2, "max_steps": 6}
COMPILED = {"torch_compile": True, "torch_compile_backend": "eager", "max_steps": 1}
BOARD = {"report_to": "tensorboard"}
JOBS = [
    {"name": "text", "kind": "healthy", "options": SHORT},
    {"name": "dpo", "kind": "dpo", "rows": 128, "options": SHORT},
    {"name": "reward", "kind": "reward", "rows": 128, "options": SHORT},
    {"name": "classification", "kind": "classification", "rows": 128, "options": SHORT},
    {"name": "packed", "kind": "healthy", "options": PACKED},
    {"name": "checkpointed", "kind": "healthy", "options": {**SHORT, "activation_checkpointing": True}},
    {"name": "lora", "kind": "healthy", "lora": True, "options": {**SHORT, "activation_checkpointing": True}},
    {"name": "stream", "kind": "stream", "options": SHORT},
    {"name": "no trainer", "kind": "healthy", "callback": {"trainer": None}, "options": SHORT},
]
CASES = [
    {"name": "exact", "kind": "healthy", "exact": True, "options": ONE},
    {"name": "exact 2", "kind": "healthy", "exact": True, "options": {**ONE, "gradient_accumulation_steps": 2}},
    {"name": "watched", "kind": "healthy", "options": STEPS},
    {"name": "plain", "kind": "healthy", "watch": False, "parameters": True, "options": TWICE},
    {"name": "every 5", "kind": "healthy", "callback": {"monitor_steps": 5}, "options": {**STEPS, **BOARD}},
    {"name": "accumulated", "kind": "healthy", "parameters": True, "options": TWICE},
    {"name": "epochs", "kind": "healthy", "rows": 100, "options": {**STEPS, "max_steps": 16}},
    {"name": "own hook", "kind": "healthy", "hook": "first", "options": STEPS},
    {"name": "same", "kind": "own order", "seeds": [3, 3], "options": STEPS},
    {"name": "mismatch", "kind": "own order", "seeds": [3, 4], "options": STEPS},
    {
        "name": "last epoch",
        "kind": "own order",
        "seeds": [3, 4],
        "half": True,
        "rows": 128,
        "options": {**STEPS, "max_steps": 8},
    },
    {"name": "other data", "kind": "other data", "options": STEPS},
    *JOBS,
    {"name": "compiled", "kind": "healthy", "options": {**TWICE, **COMPILED}},
    *({"name": f"healthy {seed}", "kind": "healthy", "options": {**STEPS, "seed": seed}} for seed in range(10)),
]


def result(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def lines(folder, name):
    return [json.loads(line) for line in (folder / name / "worker_consistency.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("consistency")
    (folder / "cases.json").write_text(json.dumps(CASES))
    launch(WORKER, [str(folder / "cases.json"), str(folder)], timeout=400).assert_backend("multi_gpu")
    return folder


@pytest.mark.multiprocess
@pytest.mark.parametrize("name", ["exact", "exact 2"])
def test_figures_are_those_of_the_workers_own_gradients(folder, name):
    expected, (line,) = result(folder, name), lines(folder, name)
    assert line["source"] == "DDP's communication hook"
    assert line["norms"] == pytest.approx(expected["norms"], rel=1e-4)
    assert line["consistency/direction"] == pytest.approx(expected["direction"], abs=1e-4)
    losses = expected["losses"]  # means over the worker's own tokens
    assert line["losses"] == pytest.approx(losses, rel=1e-5)
    assert line["consistency/loss_dispersion"] == pytest.approx(abs(losses[0] - losses[1]) / 2, rel=1e-3)
    assert line["cosines"][0][1] == pytest.approx(expected["cosines"][0][1], abs=0.25)  # 256 probes: an error of .06


@pytest.mark.multiprocess
def test_the_reduction_is_as_it_was(folder):
    plain, watched = (torch.load(folder / f"{name}.pt", weights_only=True) for name in ("plain", "accumulated"))
    assert all(torch.equal(plain[key], watched[key]) for key in plain)


@pytest.mark.multiprocess
def test_healthy_runs_are_at_their_expected_values_and_raise_no_alarm(folder):
    names = [case["name"] for case in CASES if case["name"].startswith("healthy")]
    last = [lines(folder, name)[-1] for name in names]
    for figure, spread in (
        ("direction_ratio", 0.15),
        ("loss_dispersion_ratio", 0.3),
        ("grad_norm_dispersion_ratio", 0.4),
    ):
        ratios = torch.tensor([line[f"consistency/{figure}"] for line in last])
        error = ratios.std() / len(ratios) ** 0.5
        assert abs(ratios.mean() - 1) < 3 * error + 0.05, (figure, ratios)
        assert ratios.std() < spread
    for name in [*names, "watched", "every 5", "accumulated", "epochs", "own hook"]:
        assert result(folder, name)["warnings"] == [], name


@pytest.mark.multiprocess
def test_faults_are_found_within_20_steps(folder):
    for name, part in (("same", "the same batches at the same time"), ("mismatch", "a seed of its own")):
        (warning,) = result(folder, name)["warnings"]
        assert part in warning
        assert max(line.get("consistency/repeated", 0) for line in lines(folder, name)) > 20
    (missing,) = [line["consistency/missing"] for line in lines(folder, "last epoch") if "consistency/missing" in line]
    orders = [torch.randperm(128, generator=torch.Generator().manual_seed(seed))[:64] for seed in (3, 4)]
    assert missing == 128 - len(set(torch.cat(orders).tolist()))
    assert lines(folder, "same")[-1]["consistency/direction"] == pytest.approx(1.0, abs=1e-5)
    loss, *norm = result(folder, "other data")["warnings"]
    assert "The loss of worker" in loss
    assert all("The gradient norm of worker 0" in warning for warning in norm)


@pytest.mark.multiprocess
def test_where_figures_go(folder):
    assert [line["step"] for line in lines(folder, "every 5")] == [1, 6, 11, 16]
    logged = [entry for entry in result(folder, "watched")["logs"] if "consistency/direction" in entry]
    assert len(logged) == 20
    assert all(0 < entry["consistency/direction_expected"] < 1 for entry in logged)
    assert lines(folder, "own hook")[-1]["source"] == "hooks on the parameters"
    (event_file,) = (folder / "every 5").rglob("events.out.tfevents.*")
    events = EventAccumulator(str(event_file))
    events.Reload()
    keys = {key for entry in result(folder, "every 5")["logs"] for key in entry if key.startswith("consistency/")}
    assert {f"train/{key}" for key in keys} <= set(events.Tags()["scalars"])
    sent = [(event.step, event.value) for event in events.Scalars("train/consistency/direction")]
    kept = [(line["step"], pytest.approx(line["consistency/direction"])) for line in lines(folder, "every 5")]
    assert sent == kept


@pytest.mark.multiprocess
@pytest.mark.parametrize("name", [case["name"] for case in JOBS])
def test_jobs_have_their_figures(folder, name):
    found = lines(folder, name)
    assert [line["step"] for line in found] == [1, 2, 3, 4, 5, 6]
    for line in found:
        figures = [*line["losses"], *line["norms"], line["consistency/direction"]]
        assert len(figures) == 5
        assert all(math.isfinite(figure) for figure in figures)
        assert line["source"] == ("hooks on the parameters" if name == "no trainer" else "DDP's communication hook")
    assert result(folder, name)["warnings"] == []


@pytest.mark.multiprocess
@pytest.mark.parametrize("name", ["checkpointed", "no trainer"])
def test_figures_do_not_depend_on_how_they_are_come_by(folder, name):
    for line, expected in zip(lines(folder, name), lines(folder, "text"), strict=True):
        assert line["losses"] == pytest.approx(expected["losses"], rel=1e-5)
        assert line["norms"] == pytest.approx(expected["norms"], rel=1e-4)
        healthy = [figures["consistency/direction_expected"] for figures in (line, expected)]
        assert healthy[0] == pytest.approx(healthy[1], rel=1e-3)


@pytest.mark.multiprocess
def test_a_compiled_model_has_ddps_hook(folder):
    (line,), (expected, *_) = lines(folder, "compiled"), lines(folder, "accumulated")
    assert line["source"] == expected["source"] == "DDP's communication hook"
    for name in ("norms", "losses"):
        assert line[name] == pytest.approx(expected[name], rel=1e-4)
    assert line["consistency/direction"] == pytest.approx(expected["consistency/direction"], abs=1e-4)
    assert result(folder, "compiled")["warnings"] == []


@pytest.mark.multiprocess
@pytest.mark.parametrize("backend", ["fsdp2", "zero1", "zero2", "zero3"])
def test_sharded_parameters(backend, folder, tmp_path):
    """The same run with hooks on the parameters: losses and norms exactly, directions within the sketch's error."""
    cases = [case for case in CASES if case["name"] in ("watched", "accumulated", "same", "mismatch", "lora")]
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    launched = launch(WORKER, [str(tmp_path / "cases.json"), str(tmp_path)], config=f"cpu/{backend}", timeout=300)
    launched.assert_backend(backend)
    found, expected = lines(tmp_path, "watched"), lines(folder, "watched")
    assert [line["losses"] for line in found] == [pytest.approx(line["losses"], rel=1e-4) for line in expected]
    assert [line["norms"] for line in found] == [pytest.approx(line["norms"], rel=1e-3) for line in expected]
    cosines = [[line["cosines"][0][1] for line in run] for run in (found, expected)]
    assert cosines[0] == pytest.approx(cosines[1], abs=1e-3)  # the sketch is DDP's
    directions = [sum(line["consistency/direction"] for line in run) / 20 for run in (found, expected)]
    assert directions[0] == pytest.approx(directions[1], abs=0.1)
    assert result(tmp_path, "watched")["warnings"] == []
    # Over micro-batches norms are the sketch's.
    found, expected = lines(tmp_path, "accumulated"), lines(folder, "accumulated")
    norms = torch.tensor([line["norms"] for line in found]) / torch.tensor([line["norms"] for line in expected])
    assert (norms - 1).abs().max() < 0.25
    assert norms.mean() == pytest.approx(1.0, abs=0.1)
    assert found[-1]["consistency/direction_ratio"] == pytest.approx(1.0, abs=0.35)
    for line, expected in zip(lines(tmp_path, "lora"), lines(folder, "lora"), strict=True):
        assert line["losses"] == pytest.approx(expected["losses"], rel=1e-4)
        assert line["norms"] == pytest.approx(expected["norms"], rel=1e-3)
    assert result(tmp_path, "lora")["warnings"] == []
    assert "the same batches" in result(tmp_path, "same")["warnings"][0]
    assert "a seed of its own" in result(tmp_path, "mismatch")["warnings"][0]


# ---- one process, and errors ----------------------------------------------------------------------------------------


def test_one_process_has_nobody_to_compare_with(tokenizer, tmp_path, caplog):
    import trl

    trainer = make_trainer(trl.SFTTrainer, trl.SFTConfig, tokenizer, tmp_path, text_dataset(26))
    trainer.add_callback(WorkerConsistencyCallback(trainer=trainer))
    trainer.train()
    assert "no workers to compare" in caplog.text
    assert not (tmp_path / "worker_consistency.jsonl").exists()


@pytest.mark.parametrize(("name", "value"), [("monitor_steps", 0), ("window", 15), ("probes", 1), ("probes", 2.5)])
def test_bad_options(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be a whole number of at least"):
        WorkerConsistencyCallback(**{name: value})
