"""The bytes that features hand to collectives are those that docs/scaling.md says."""

import json
from pathlib import Path

import pytest

from launch import launch
from pair_helpers import save_policy

WORKER = Path(__file__).parent / "workers" / "traffic_cases.py"
STEPS = 8


def case(name, kind, batch=4, callbacks=None, **options):
    return {
        "name": name,
        "kind": kind,
        "batch": batch,
        "steps": STEPS,
        "callbacks": callbacks or {},
        "options": options,
    }


MICRO = {"weighting": "linupper", "weighting_kwargs": {"scope": "micro_batch", "warmup_ratio": 0.0}}
STEP = {"weighting": "linupper", "weighting_kwargs": {"scope": "step", "warmup_ratio": 0.0}}
CASES = [
    case("sft", "sft"),
    *(case(f"micro_batch {batch}", "sft", batch, **MICRO) for batch in (4, 8)),
    case("step", "sft", **STEP),
    case("dpo", "dpo"),
    case("beta_dpo", "dpo", loss_type=["beta_dpo"]),
    case("entanglement", "dpo", callbacks={"entanglement": {"monitor_steps": 2}}),
    case("direction", "dpo", callbacks={"entanglement": {"monitor_steps": 2, "direction": "step"}}),
    case("consistency", "sft", callbacks={"consistency": {"monitor_steps": 2}}),
]


@pytest.fixture(scope="module")
def counted(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("traffic")
    save_policy(folder / "policy", tokenizer)
    (folder / "cases.json").write_text(json.dumps(CASES))
    launch(WORKER, [str(folder / "cases.json"), str(folder)], timeout=300).assert_world("MULTI_CPU")
    return json.loads((folder / "traffic.json").read_text())


def more(counted, name, base, but=()):
    """Bytes of tensors, and object gathers, that a run has beyond another."""
    skipped = {"objects", *but}
    total = {run: sum(n for key, n in counted[run].items() if key not in skipped) for run in (name, base)}
    objects = {run: counted[run].get("objects", 0) for run in (name, base)}
    return total[name] - total[base], objects[name] - objects[base]


# A gather of rows brings their number along: two integers of 8 bytes.
SIZES = 16


@pytest.mark.multiprocess
def test_weights(counted):
    for batch in (4, 8):
        assert more(counted, f"micro_batch {batch}", "sft") == (STEPS * (9 * 8 * batch + SIZES), 0)
    assert more(counted, "step", "sft") == (STEPS * 2 * (9 * 8 * 4 + SIZES), 0)


@pytest.mark.multiprocess
def test_objectives(counted):
    weighed, beta, drift = 9 * 8 * 4 + SIZES, 2 * 8 * 4 + SIZES, 3 * 4
    assert more(counted, "beta_dpo", "dpo") == (STEPS * (weighed + beta + drift), 0)


@pytest.mark.multiprocess
def test_monitors(counted):
    monitored, probes = STEPS // 2, 256
    table = 17 * 4 * 4 + SIZES
    assert more(counted, "entanglement", "dpo") == (monitored * table, 0)
    assert more(counted, "direction", "dpo") == (monitored * (table + 4 * probes), 0)
    # DDP's own reduction goes through Python once a hook is registered, and is seen there.
    assert more(counted, "consistency", "sft", but=["all_reduce"]) == (monitored * 8 * (6 + probes), monitored)
