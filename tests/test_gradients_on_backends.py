"""Figures of gradients on two processes, whose parameters may be sharded, against one process with the same pairs."""

import json
from pathlib import Path

import pytest

from launch import launch
from pair_helpers import save_policy
from workers.gradient_cases import watch

WORKER = Path(__file__).parent / "workers" / "gradient_cases.py"
SPLIT = {"gradient_accumulation_steps": 2, "max_steps": 3}
OURS = {"monitors": ["entanglement", "gradient_statistics"], "monitor_steps": 1}
BALANCED = {"gradient_balancing": "batch"}
LARGE = {"learning_rate": 1.0}
CASES = [
    {
        "name": "step",
        "trainer": "trl",
        "batch": 8,
        "callback": {"direction": "step", "observe": True, "projections": 1024},
        "options": {"max_steps": 3, "learning_rate": 1e-3},
    },
    {"name": "pairs", "trainer": "trl", "batch": 4, "callback": {}, "options": SPLIT},
    {
        "name": "ours",
        "trainer": "ours",
        "batch": 4,
        "options": {**SPLIT, "monitors": ["entanglement"], "monitor_steps": 1},
    },
    {
        "name": "lora",
        "trainer": "trl",
        "batch": 4,
        "lora": True,
        "callback": {},
        "options": {**SPLIT, "learning_rate": 1.0},
    },
    {
        "name": "checkpointing",
        "trainer": "trl",
        "batch": 4,
        "callback": {},
        "options": {**SPLIT, "activation_checkpointing": True},
    },
]
SHARES = ("ideal", "both_fall", "chosen_rises")
FIGURES = ("cosine", "norm_ratio", "chosen_norm", "rejected_norm", "coverage", *SHARES)


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gradients")
    save_policy(folder / "policy", tokenizer)
    return folder


@pytest.fixture(scope="module")
def alone(folder):
    return {case["name"]: watch(case, folder, processes=1).state.log_history for case in CASES}


def column(logs, name):
    return [entry[f"entanglement/{name}"] for entry in logs if f"entanglement/{name}" in entry]


@pytest.mark.multiprocess
@pytest.mark.parametrize("backend", ["multi_gpu", "fsdp2", "zero2", "zero3"])
def test_figures_are_those_of_one_process(backend, folder, alone, tmp_path):
    (tmp_path / "cases.json").write_text(json.dumps(CASES))
    (tmp_path / "policy").symlink_to(folder / "policy")
    launched = launch(WORKER, [str(tmp_path / "cases.json"), str(tmp_path)], config=f"cpu/{backend}", timeout=300)
    launched.assert_backend(backend)
    for case in CASES:
        found = json.loads((tmp_path / f"{case['name']}.json").read_text())
        expected = alone[case["name"]]
        assert len(column(found, "cosine")) == 3
        for name in FIGURES:
            if case["name"] == "step" and name in ("ideal", "both_fall", "chosen_rises"):
                continue  # estimated
            assert column(found, name) == pytest.approx(column(expected, name), rel=1e-4, abs=1e-6), (
                case["name"],
                name,
            )
