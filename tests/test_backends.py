"""Every job on every backend: two real processes give what one process gives with the same examples.

One launch a backend trains all cases. A step is of 8 examples, as 2 ranks x 2 rows x 2 micro-batches there and as
4 rows x 2 micro-batches in this process. An epoch's last step is left out: two ranks fill it up with rows that one
process does not repeat.
"""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from hf_gradkit.reporting import read_example_log
from hf_gradkit.trainers.checkpoints import read_facts
from hf_gradkit.trainers.mixin import STATE_FILE
from launch import BACKENDS
from pair_helpers import pairs, save_policy
from pairs import save_reward_model, write_pairs
from results import Results
from workers.backend_cases import run_cases, score_pairs

pytestmark = pytest.mark.multiprocess

# SGD in float32: what differs is the order in which gradients of up to 1 are added up, a few 1e-8 an element and step.
TOLERANCE = 1e-6
STRONG = {"temperature": 0.4, "warmup_ratio": 0.0}
LINUPPER = {"weighting": "linupper", "weighting_kwargs": STRONG}
COLUMNS = ("weight", "source", "uid")
SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 5, "optim": "adamw_torch", "learning_rate": 1e-3}
SAVING["model_init_kwargs"] = {"dtype": "float32", "attention_dropout": 0.2}
RESAMPLING = {"temperature": 0.05}
LOG = {"example_log": True, "group_column": "source", "example_id_column": "uid"}


def case(name, job, lora=False, columns=(), continues=None, rows=26, **options):
    return {
        "name": name,
        "rows": rows,
        "job": job,
        "lora": lora,
        "batch": 4,
        "columns": columns,
        "continues": continues,
        "reward_model": options.pop("reward_model", False),
        "options": {
            "gradient_accumulation_steps": 2,
            "max_steps": 3,
            "lr_scheduler_type": "constant",
            "learning_rate": 0.3,
            "ddp_find_unused_parameters": False,
            **options,
        },
    }


def scope(name):
    return {"weighting": "linupper", "weighting_kwargs": {**STRONG, "scope": name}}


WHOLE = [
    case("sft micro_batch", "sft", **scope("micro_batch")),
    case("sft running lora", "sft", True, **scope("running")),
    case("sft step", "sft", **scope("step")),
    case("sft columns", "sft", columns=COLUMNS, weight_column="weight", normalize_weight_column=True, **LOG),
    case(
        "plain",
        "plain",
        columns=COLUMNS,
        weight_column="weight",
        save_strategy="steps",
        save_steps=2,
        **{**LINUPPER, **LOG},
    ),
    # Two steps an epoch: the third one is of rows that were drawn by the losses of all processes.
    case("resampled", "sft", columns=COLUMNS, rows=16, sampler="personal_loss", sampler_kwargs=RESAMPLING, **LOG),
    case("dpo lora", "dpo", True),
    case("madpo", "dpo", columns=("reward_margin", "source", "uid"), weighting="madpo", **LOG),
    case("rpo lora", "dpo", True, columns=("reward_margin",), loss_type=["rpo"], loss_kwargs={"rpo": {"eta": 0.1}}),
    case("beta_dpo", "dpo", loss_type=["beta_dpo"]),
    case("reward", "reward"),
    case("reward lora", "reward", True),
    case(
        "margins",
        "dpo",
        reward_model=True,
        per_device_eval_batch_size=2,
        weighting="madpo",
        weighting_kwargs={"calibrate": False},
    ),
]
SAVED = [
    case("saved sft", "sft", columns=COLUMNS, **{**LINUPPER, **LOG, **SAVING}),
    case("saved dpo", "dpo", True, loss_type=["beta_dpo"], group_column="source", columns=("source",), **SAVING),
]


(PLAIN,) = (one for one in WHOLE if one["name"] == "plain")
CASES = WHOLE + SAVED + [{**one, "name": f"{one['name']} again", "continues": [one["name"], 2]} for one in SAVED]


@pytest.fixture(scope="module")
def start(tokenizer, tmp_path_factory) -> Path:
    """A folder with what every run starts from."""
    folder = tmp_path_factory.mktemp("start")
    torch.manual_seed(0)
    save_policy(folder / "policy", tokenizer)
    save_reward_model(tokenizer, folder / "reward_model")
    write_pairs(folder / "pairs.jsonl", list(pairs(27)))
    return folder


@pytest.fixture(scope="module")
def alone(start, tokenizer, tmp_path_factory) -> Path:
    """The folder of the same runs in this process."""
    folder = tmp_path_factory.mktemp("alone")
    shutil.copytree(start, folder, dirs_exist_ok=True)
    run_cases(WHOLE, folder, tokenizer, processes=1)
    score_pairs(folder)
    return folder


@pytest.fixture(scope="module", params=BACKENDS)
def results(request, start, alone, tmp_path_factory) -> Results:
    results = Results("backend_cases.py", tmp_path_factory.mktemp(request.param), request.param)
    shutil.copytree(start, results.folder, dirs_exist_ok=True)
    cases = list(CASES)
    if request.param == "multi_gpu":
        shutil.copytree(alone / "plain", results.folder / "plain of one")
        cases.append({**PLAIN, "name": "plain of two", "continues": ["plain of one", 2]})
    results.run(cases)
    return results


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = (folder / "model").glob("*.safetensors")
    return load_file(file)


def gap(ones: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> float:
    assert ones.keys() == others.keys()
    return max((value - others[key]).abs().max().item() for key, value in ones.items())


def logs(folder: Path) -> list[dict[str, float]]:
    return [entry for entry in json.loads((folder / "logs.json").read_text()) if "loss" in entry]


def rows(folder: Path) -> list[dict]:
    return sorted(read_example_log(str(folder)).to_pylist(), key=lambda row: (row["step"], row["example_id"]))


def test_two_processes_train_what_one_does(results, alone):
    """The model, and each figure that a step logs: losses, weights, rewards, averages, the gradient's norm."""
    for one in WHOLE:
        name, options = one["name"], one["options"]
        ours, theirs = results.folder / name, alone / name
        trained = weights(ours)
        assert gap(trained, weights(theirs)) < TOLERANCE, name
        # What was trained is large against the tolerance; the adapters' second matrices begin at zero.
        if one["lora"]:
            moved = max(value.abs().max().item() for key, value in trained.items() if "lora_B" in key)
        else:
            before = load_file(results.folder / "policy" / "model.safetensors")
            moved = max((trained[key] - value).abs().max().item() for key, value in before.items() if key in trained)
        assert moved > 1000 * TOLERANCE, name
        assert len(logs(ours)) == options["max_steps"]
        for entry, expected in zip(logs(ours), logs(theirs), strict=True):
            expected.pop("total_flos", None)
            assert {key: entry[key] for key in expected} == pytest.approx(expected, rel=1e-4, abs=2e-6), name
        if "example_log" in options:
            for row, expected in zip(rows(ours), rows(theirs), strict=True):
                figures = {key: value for key, value in expected.items() if isinstance(value, float)}
                assert {"loss", "weight"} <= figures.keys()
                assert row | figures == expected
                assert {key: row[key] for key in figures} == pytest.approx(figures, rel=1e-4), name


def test_what_it_saves_is_an_ordinary_model(results):
    kinds = {
        ("reward", False): AutoModelForSequenceClassification,
        ("reward", True): AutoPeftModelForSequenceClassification,
        (None, True): AutoPeftModelForCausalLM,
        (None, False): AutoModelForCausalLM,
    }
    for one in CASES:
        kind = kinds[("reward" if one["job"] == "reward" else None, one["lora"])]
        options = {"num_labels": 1} if kind is AutoPeftModelForSequenceClassification else {}
        model = kind.from_pretrained(results.folder / one["name"] / "model", **options)
        if not one["lora"]:
            saved, tied = weights(results.folder / one["name"]), "lm_head.weight"
            loaded = {key: value for key, value in model.state_dict().items() if key in saved or key != tied}
            assert gap(saved, loaded) == 0


def test_a_resumed_run_equals_the_uninterrupted_one(results):
    """With dropout and AdamW, from step 2 of 5, across the epoch's end: to the bit."""
    for one in SAVED:
        whole, again = (results.folder / f"{one['name']}{end}" for end in ("", " again"))
        assert gap(weights(whole), weights(again)) == 0
        for entry, expected in zip(logs(again), logs(whole), strict=True):
            expected.pop("num_tokens")  # TRL counts them from the start of the process
            assert {key: entry[key] for key in expected} == expected
        if one["options"].get("example_log"):
            assert rows(again) == rows(whole)
            assert len(rows(again)) == 26 + 8
        states = [torch.load(run / "checkpoint-4" / STATE_FILE, weights_only=True) for run in (whole, again)]
        assert str(states[0]) == str(states[1])


def test_two_processes_score_what_one_does(results, alone):
    scored, expected = (pq.read_table(folder / "scored" / "scored.parquet") for folder in (results.folder, alone))
    for name in ("reward_chosen", "reward_rejected", "reward_margin"):
        assert scored[name].to_pylist() == pytest.approx(expected[name].to_pylist(), abs=1e-5)
    assert len(set(scored["reward_margin"].to_pylist())) > 20


def test_one_process_goes_on_where_two_were(results, tokenizer):
    """From a checkpoint of DDP; where the optimizer's state is in parts, that is said."""
    alone = {**PLAIN, "name": "plain alone", "continues": ["plain", 2]}
    if results.backend != "multi_gpu":
        with pytest.raises(ValueError, match=r"was written by 2 processes under .*, and 1 process cannot read"):
            run_cases([alone], results.folder, tokenizer, processes=1)
        return
    run_cases([alone], results.folder, tokenizer, processes=1)
    check_same_run(*(results.folder / name for name in ("plain", "plain alone")))


@pytest.mark.parametrize("results", ["multi_gpu"], indirect=True)
def test_two_processes_go_on_where_one_was(results, alone):
    check_same_run(alone / "plain", results.folder / "plain of two")


def check_same_run(whole: Path, again: Path) -> None:
    """Check that a run which went on with another number of processes is the uninterrupted one, up to rounding."""
    written, now = (read_facts(run / f"checkpoint-{step}")["processes"] for run, step in ((again, 2), (again, 3)))
    assert {written, now} == {1, 2}
    assert gap(weights(whole), weights(again)) < TOLERANCE
    for row, expected in zip(rows(again), rows(whole), strict=True):
        assert row["example_id"] == expected["example_id"]
        assert row["weight"] == pytest.approx(expected["weight"], rel=1e-4)


def test_rows_are_drawn_by_the_losses_of_all_processes(results, alone):
    """That they are those of one process is compared above; here that they are no plain epoch."""
    for folder in (results.folder, alone):
        epochs = [[row["example_id"] for row in rows(folder / "resampled") if (row["step"] == 3) is second]
                  for second in (False, True)]  # fmt: skip
        assert len(set(epochs[0])) == 16
        assert len(set(epochs[1])) < 8
