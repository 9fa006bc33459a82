"""Two processes give the figures of one: both audits, and the callback, also while the model is split over them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from audit_helpers import memorise, record_tokenizer, save_base
from launch import BACKENDS
from results import Results
from workers.audit_cases import FORWARD, ROWS, audit, watch

pytestmark = pytest.mark.multiprocess


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return save_base(tmp_path_factory.mktemp("processes"), record_tokenizer(), steps=60)


@pytest.fixture(scope="module")
def cases(base, tmp_path_factory) -> list[dict]:
    """A whole model beside the base as a second one, and an adapter that is switched off for it."""
    folder, tokenizer = tmp_path_factory.mktemp("models"), AutoTokenizer.from_pretrained(base)
    adapter = memorise(base, folder / "lora", tokenizer, True, rows=ROWS, held=19, num_train_epochs=4)
    return [
        {
            "kind": "audit",
            "name": "full",
            "model": memorise(base, folder / "full", tokenizer, rows=ROWS, held=19),
            "reference": base,
        },
        {"kind": "audit", "name": "lora", "model": adapter, "command": True},
    ]


@pytest.fixture(scope="module")
def alone(base, cases, tmp_path_factory) -> Path:
    """The folder of what one process finds."""
    folder = tmp_path_factory.mktemp("alone")
    for case in cases:
        (folder / f"{case['name']}.json").write_text(json.dumps(audit({**case, "command": False}, folder)))
    watch({"name": "watched", "base": base}, folder, processes=1)
    return folder


@pytest.fixture(scope="module", params=["multi_gpu", "fsdp2", "zero2", "zero3"])
def results(request, base, cases, tmp_path_factory) -> Results:
    results = Results("audit_cases.py", tmp_path_factory.mktemp(request.param), request.param)
    results.run([*cases, {"kind": "watch", "name": "watched", "base": base}])
    return results


def flat(figures: Any, path: str = "") -> dict[str, Any]:
    """Return nested figures as one mapping."""
    if not isinstance(figures, (dict, list)):
        return {path: figures}
    named = figures.items() if isinstance(figures, dict) else enumerate(figures)
    return {key: value for name, part in named for key, value in flat(part, f"{path}/{name}").items()}


@pytest.mark.parametrize("name", ["full", "lora"])
def test_membership(name, results, alone):
    expected = json.loads((alone / f"{name}.json").read_text())
    split = BACKENDS[results.backend]["sharded"]
    for rank in (0, 1):
        found = results.of(name, rank)
        assert found["part"] == pytest.approx(0.5, abs=0.01) if split else found["part"] == 1
        attacks = [*FORWARD, "gradient_norm", *([] if split else ["gradient_norm stepped", "step_ratio stepped"])]
        assert list(found["scores"]) == attacks
        for attack in attacks:
            assert np.allclose(found["scores"][attack], expected["scores"][attack], rtol=1e-4, atol=1e-5), attack
            assert len(set(found["scores"][attack])) > 10, attack
        assert found["gate"]["confounded"] == expected["gate"]["confounded"]


def test_extraction(results, alone):
    expected = json.loads((alone / "full.json").read_text())
    for rank in (0, 1):
        found = results.of("full", rank)
        assert np.abs(np.array(found["p_z"]) - expected["p_z"]).max() < 1e-5
        assert found["guesses"] == expected["guesses"]
        assert len({len(guess) for guess in found["guesses"]}) > 2
        assert flat(found["members"]) == pytest.approx(flat(expected["members"]), abs=1e-4)
        assert flat(found["canaries"]) == pytest.approx(flat(expected["canaries"]), abs=1e-4)


def test_the_command(results, alone):
    """An adapter's extraction, by the command line."""
    expected = json.loads((alone / "lora.json").read_text())["members"]
    assert flat(results.of("command", 1)) == pytest.approx(flat(expected), abs=1e-4)


def test_what_needs_whole_gradients_is_refused_where_there_are_none(results):
    refused = results.of("full")["refused"]
    if not BACKENDS[results.backend]["sharded"]:
        assert refused is None
        return
    name = {"fsdp2": "FSDP2", "zero3": "ZeRO-3"}[results.backend]
    assert refused.startswith(f"Under {name} no process has the whole gradient of an example, which 'gradient_norm'")
    assert "'step_ratio'" in refused


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "privacy_audit.jsonl").read_text().splitlines()]


def test_the_callback(results, alone):
    found, expected = lines(results.folder / "watched-2"), lines(alone / "watched-1")
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for one, two in zip(expected, found, strict=True):
        for name, value in one.items():
            if name.startswith("privacy_audit/"):
                # One swap of a member and a non-member with all but equal scores moves an AUC by less than .001.
                near = 1e-3 if "loss" in name.removeprefix("privacy_audit/auc_") else 2e-3
                assert two[name] == pytest.approx(value, abs=0.06 if "tpr" in name else near), name
