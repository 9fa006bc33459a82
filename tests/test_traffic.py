"""The bytes that features hand to collectives are those that docs/scaling.md says."""

import json
import re
from pathlib import Path

import pytest

from hf_gradkit.data.tiny import tiny_llama
from launch import launch
from pair_helpers import save_policy
from pairs import save_reward_model

pytestmark = pytest.mark.multiprocess

WORKER = Path(__file__).parent / "workers" / "traffic_cases.py"
TFIDF = 65_536 * 8  # the frequencies of its buckets
PAGE = Path(__file__).parent.parent / "docs" / "scaling.md"
STEPS, SHARDED_STEPS = 4, 4
RANKS, PROBES = 2, 256
AUDIT = {"batch_size": 2}  # 26 examples, so 7 batches for one process and 6 for the other, which runs one more
BATCHES = 7


def case(name, kind="sft", batch=4, callbacks=None, steps=STEPS, rows=512, **options):
    return {
        "name": name,
        "kind": kind,
        "batch": batch,
        "steps": steps,
        "rows": rows,
        "callbacks": callbacks or {},
        "options": options,
    }


def weights(scope, **options):
    return {"weighting": "linupper", "weighting_kwargs": {"scope": scope, "warmup_ratio": 0.0, **options}}


TWO = {"gradient_accumulation_steps": 2}
SAVING = {"save_strategy": "steps", "save_steps": 1000}
EVERY_OTHER = {"monitor_steps": 2}
STATISTICS = {"statistics": EVERY_OTHER}
MEMBERSHIP = case("membership", "membership", rows=26, attacks=["loss"], **AUDIT)
SCORING = [
    case(f"{kind} {rows}", kind, rows=rows, batch_size=4, **({"fraction": 0.5} if kind == "selection" else {}))
    for kind in ("difficulty", "margins", "selection")
    for rows in (16, 64)
]

EXTRACTION = {"prefix_tokens": 4, "suffix_tokens": 4, "generations": 1, **AUDIT}

CASES = [
    MEMBERSHIP,
    case("membership, more", "membership", rows=74, attacks=["loss"], **AUDIT),
    *(case(name, "extraction", rows=n, **EXTRACTION) for name, n in (("extraction", 26), ("extraction, more", 74))),
    *SCORING,
    case("greedy 64", "selection", rows=64, batch_size=4, fraction=0.5, method="greedy"),
    case("sft", "trl"),
    case("sft, two", "trl", **TWO),
    case("saving", "trl", **SAVING),
    case("sigterm", **SAVING),
    *(case(f"micro_batch {batch}", batch=batch, **weights("micro_batch")) for batch in (4, 8)),
    case("step", **weights("step")),
    case("step, two", **weights("step"), **TWO),
    case("sequence", **weights("micro_batch", normalization="sequence")),
    case("groups", group_column="source"),
    case("resampled", rows=16, sampler="personal_loss"),  # 2 steps an epoch
    case("consistency", callbacks={"consistency": EVERY_OTHER}),
    *(case(f"statistics {batch}", batch=batch, callbacks=STATISTICS) for batch in (1, 4, 8)),
    case("privacy", callbacks={"privacy_audit": AUDIT}),
    case("dpo", "dpo"),
    case("dpo, two", "dpo", **TWO),
    case("madpo", "dpo", weighting="madpo"),
    case("rpo", "dpo", loss_type=["rpo"]),
    case("beta_dpo", "dpo", loss_type=["beta_dpo"]),
    case("dpo step", "dpo", **weights("step")),
    case("balanced pairs", "dpo", gradient_balancing="pair", **TWO),
    case("balanced batches", "dpo", gradient_balancing="batch", **EVERY_OTHER),
    case("entanglement", "dpo", callbacks={"entanglement": EVERY_OTHER}),
    case("direction", "dpo", callbacks={"entanglement": {**EVERY_OTHER, "direction": "step"}}),
]
SHARDED = [
    MEMBERSHIP,
    *SCORING,
    case("gradients", "membership", rows=26, attacks=["gradient_norm"], **AUDIT),
    case("extraction", "extraction", rows=26, **EXTRACTION),
    *(
        case(name, kind, steps=SHARDED_STEPS, **options)
        for name, kind, options in (
            ("sft", "trl", {}),
            ("statistics 4", "sft", {"callbacks": STATISTICS}),
            ("consistency", "sft", {"callbacks": {"consistency": EVERY_OTHER}}),
            ("resampled", "sft", {"rows": 16, "sampler": "personal_loss"}),
            ("micro_batch", "sft", weights("micro_batch")),
            ("micro_batch, two", "sft", {**weights("micro_batch"), **TWO}),
            ("step", "sft", weights("step")),
            ("step, two", "sft", {**weights("step"), **TWO}),
            ("privacy", "sft", {"callbacks": {"privacy_audit": AUDIT}}),
            ("dpo", "dpo", {}),
            ("dpo step", "dpo", weights("step")),
            ("entanglement", "dpo", {"callbacks": {"entanglement": EVERY_OTHER}}),
            ("balanced batches", "dpo", {"gradient_balancing": "batch", **EVERY_OTHER}),
        )
    ),
]


def count(backend, cases, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp(backend)
    save_policy(folder / "policy", tokenizer)
    save_reward_model(tokenizer, folder / "reward_model")
    (folder / "cases.json").write_text(json.dumps(cases))
    launch(WORKER, [str(folder / "cases.json"), str(folder)], f"cpu/{backend}", timeout=300).assert_backend(backend)
    return json.loads((folder / "traffic.json").read_text())


@pytest.fixture(scope="module")
def counted(tokenizer, tmp_path_factory):
    return count("multi_gpu", CASES, tokenizer, tmp_path_factory)


@pytest.fixture(scope="module")
def sharded(tokenizer, tmp_path_factory):
    return count("fsdp2", SHARDED, tokenizer, tmp_path_factory)


@pytest.fixture(scope="module")
def sizes(tokenizer):
    """Bytes of the model's parameters: of all, of the blocks, and of the last norm and the head."""
    model = tiny_llama(tokenizer, hidden_size=32)
    blocks = sum(4 * p.numel() for p in model.model.layers.parameters())
    last = sum(4 * p.numel() for module in (model.model.norm, model.lm_head) for p in module.parameters())
    return {"P": sum(4 * p.numel() for p in model.parameters()), "blocks": blocks, "last": last}


def said(feature, table=0, n=4, **letters):
    """Return the bytes of a row of the page's table: those of its formula, which goes as far as the first comma."""
    lines = PAGE.read_text().split("\n| feature |")[1 + table].splitlines()
    (row,) = (cells for line in lines if (cells := line.split(" | "))[0] == f"| {feature}")
    formula = re.sub(r"([\w)]) (?=[A-Za-z(])", r"\1 * ", row[1].split(",")[0])
    return int(eval(formula, {"__builtins__": {}}, {"n": n, "M": 1, "N": RANKS, "k": PROBES, **letters}))


def a_pass(feature, **letters):
    """The same of the table of parameters."""
    return said(feature, table=1, **letters)


def more(counted, name, base, but=("told",)):
    """Bytes of tensors, and object gathers, that a run has beyond another."""
    skipped = {"objects", "object_bytes", *but}
    total = {run: sum(n for key, n in counted[run].items() if key not in skipped) for run in (name, base)}
    objects = {run: counted[run].get("objects", 0) for run in (name, base)}
    return total[name] - total[base], objects[name] - objects[base]


def parameters(counted, name, base=None):
    """Bytes of parameters that FSDP2 gathers in a run, beyond another's."""
    return counted[name]["parameters"] - (counted[base]["parameters"] if base else 0)


WEIGHTS = "weights, columns, example log (`micro_batch`, `running`)"
BALANCING = "`gradient_balancing`"


def test_weights(counted):
    for batch in (4, 8):
        assert more(counted, f"micro_batch {batch}", "sft") == (STEPS * said(WEIGHTS, n=batch), 0)
    assert more(counted, "step", "sft") == (STEPS * said("weights, scope `step`"), 0)
    assert more(counted, "step, two", "sft, two") == (STEPS * said("weights, scope `step`", M=2), 0)
    totals = said('`normalization="sequence"`, `normalize_weight_column`')
    assert more(counted, "sequence", "micro_batch 4") == (STEPS * totals, 0)


def test_stopping_groups_and_resampling(counted):
    stop = said("the same, where checkpoints are written: were any of them asked to stop (SIGTERM)?")
    assert more(counted, "sigterm", "saving") == ((STEPS + 1) * stop, 0)  # the last step writes a checkpoint
    # All three names are in the first micro-batch: one gather of some ten bytes each.
    assert more(counted, "groups", "micro_batch 4") == (0, 1)
    assert counted["groups"]["object_bytes"] < 100
    assert more(counted, "resampled", "sft") == (STEPS * said('`sampler="personal_loss"`'), 0)


def test_objectives(counted):
    for name in ("madpo", "rpo"):
        assert more(counted, name, "dpo") == (STEPS * said("DPO with any of these, MADPO, RPO"), 0)
    assert more(counted, "beta_dpo", "dpo") == (STEPS * said("beta-DPO"), 0)
    assert more(counted, "dpo step", "dpo") == (STEPS * said("DPO, scope `step`"), 0)


def test_balancing(counted):
    besides = said("the same")
    assert more(counted, "balanced pairs", "dpo, two") == (STEPS * (2 * said(BALANCING) + besides), 0)
    assert more(counted, "balanced batches", "dpo") == (STEPS * said(BALANCING) + STEPS // 2 * besides, 0)


def test_monitors(counted, sizes):
    monitored, table = STEPS // 2, said("`EntanglementCallback`")
    direction = said('the same, `direction="step"`')
    assert more(counted, "entanglement", "dpo") == (monitored * table, 0)
    assert more(counted, "direction", "dpo") == (monitored * (table + direction), 0)
    # DDP's own reduction goes through Python once a hook is registered, and is seen there: each gradient once a step.
    figures, gradients = said("`WorkerConsistencyCallback`"), STEPS * sizes["P"]
    assert more(counted, "consistency", "sft") == (monitored * figures + gradients, monitored + 1)
    each_step = counted["consistency"]["object_bytes"] - 800  # "0.8 kB, as another, at the start"
    assert 6 <= each_step / (STEPS * 4) < 14  # "about 10 bytes an example"


def test_statistics(counted):
    one, four, eight = (counted[f"statistics {n}"]["object_bytes"] / (STEPS // 2) for n in (1, 4, 8))
    assert (eight - four) / 4 == 10 + 16  # ids are 16 letters here
    assert 550 < four - 4 * 26 < 650
    assert 4 * PROBES < one - (four - 3 * 26) < 4 * PROBES + 400
    for n in (4, 8):
        assert more(counted, f"statistics {n}", "sft") == (0, STEPS // 2)


def test_audits(counted):
    assert set(counted["membership"]) == {"told", "object_bytes"}
    assert more(counted, "privacy", "sft") == (0, 0)
    for name in ("membership", "extraction"):
        assert counted[name]["object_bytes"] < 10_000
        a_text = (counted[f"{name}, more"]["object_bytes"] - counted[name]["object_bytes"]) / (74 - 26)
        assert 100 < a_text < 200
    assert counted["privacy"]["object_bytes"] < 2 * (26 + 500)  # before the first step, and at the end


def objects(counted, kind):
    """Bytes of objects that a job sends which trains nothing, and those that 48 rows add to it."""
    few, many = counted[f"{kind} 16"], counted[f"{kind} 64"]
    assert set(few) == set(many) == {"told", "object_bytes"}  # no tensor, and no parameter of a model
    return few["object_bytes"], many["object_bytes"] - few["object_bytes"]


def check_scoring(counted):
    for kind, a_row in (("difficulty", 1), ("margins", 2)):
        fixed, added = objects(counted, kind)
        assert added == 48 * a_row
        assert fixed < 1000
    fixed, added = objects(counted, "selection")
    assert TFIDF < fixed < TFIDF + 10_000
    kept = 24 * 8
    assert kept + 48 * 2 < added < kept + 48 * 5 + 100  # two answers, and at most three passes over the prompts


def test_scoring_and_selection(counted):
    check_scoring(counted)
    greedy = counted["greedy 64"]["object_bytes"] - counted["selection 64"]["object_bytes"]
    assert 64 * 8 <= greedy < 64 * 8 + 300


def test_what_costs_nothing_more_where_fsdp2_splits(sharded):
    """Bytes of these are what they are under DDP; parameters are among them."""
    monitored = SHARDED_STEPS // 2
    assert more(sharded, "resampled", "sft") == (SHARDED_STEPS * said('`sampler="personal_loss"`'), 0)
    assert more(sharded, "statistics 4", "sft") == (0, monitored)
    assert more(sharded, "consistency", "sft") == (monitored * said("`WorkerConsistencyCallback`"), monitored + 1)
    assert more(sharded, "entanglement", "dpo") == (monitored * said("`EntanglementCallback`"), 0)
    balancing = SHARDED_STEPS * said(BALANCING) + monitored * said("the same")
    assert more(sharded, "balanced batches", "dpo") == (balancing, 0)
    zero = {"sft": ("resampled", "statistics 4", "consistency"), "dpo": ("entanglement", "balanced batches")}
    for base, names in zero.items():
        assert parameters(sharded, base) > 0
        assert {parameters(sharded, name, base) for name in names} == {0}
    check_scoring(sharded)


def test_passes_of_a_model_that_fsdp2_splits(sharded, sizes):
    P, last = sizes["P"], sizes["last"] // RANKS
    one = a_pass("weights, scope `step`", P=P)
    assert parameters(sharded, "step", "micro_batch") == SHARDED_STEPS * one
    two = a_pass("weights, scope `step`", P=P, M=2)
    assert parameters(sharded, "step, two", "micro_batch, two") == SHARDED_STEPS * (two - last)
    both = a_pass("the same, DPO without precomputed log-probabilities", P=P, Q=P)
    assert parameters(sharded, "dpo step", "dpo") == SHARDED_STEPS * both
    # What the audit is of before the first step, and again at the end.
    most = 2 * BATCHES * a_pass("`PrivacyAuditCallback`", P=P)
    assert most - 2 * BATCHES * last < parameters(sharded, "privacy", "micro_batch") <= most


def test_audits_of_a_model_that_fsdp2_splits(sharded, sizes):
    P, blocks = sizes["P"], sizes["blocks"] // RANKS
    rest = P // RANKS - blocks
    assert parameters(sharded, "membership") == BATCHES * blocks + rest
    assert parameters(sharded, "membership") <= BATCHES * a_pass("membership audit, each model", P=P)
    # The texts are scored as in any audit, then there is a backward pass of each as well.
    assert parameters(sharded, "gradients", "membership") == BATCHES * (2 * blocks + rest)
    most = BATCHES * a_pass("the same, attacks by gradients", P=P)
    assert parameters(sharded, "gradients", "membership") <= most
    # Suffixes are scored, then guessed greedily and drawn: transformers reduces 4 bytes a token to know who is done.
    tokens = sharded["extraction"]["all_reduce"] // 4
    assert tokens >= 2 * 4 * BATCHES
    assert parameters(sharded, "extraction") == (tokens + BATCHES) * blocks + 3 * rest
