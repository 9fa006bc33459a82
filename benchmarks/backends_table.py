"""Which job runs on which backend: docs/results/distributed.md, every cell from two real CPU processes.

    python benchmarks/backends_table.py          # all backends: about a quarter of an hour on two quiet cores
    python benchmarks/backends_table.py zero3    # one; the others stay as they were measured

For each backend one launch trains every job, with a checkpoint after each of its three steps, and again from the
second one. One process trains the same. Then each job is killed: SIGKILL of rank 1 in the middle of the third step,
and another launch goes on from the last checkpoint. The jobs and the tiny models are those of tests/test_backends.py.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import pyarrow.parquet as pq  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from helpers import make_rows  # noqa: E402
from hf_gradkit._compat import versions  # noqa: E402
from hf_gradkit.data.tiny import train_tokenizer  # noqa: E402
from launch import BACKENDS, launch  # noqa: E402
from pair_helpers import pairs, save_policy  # noqa: E402
from pairs import save_reward_model, write_pairs  # noqa: E402
from workers.backend_cases import run_cases, score_pairs  # noqa: E402

WORKER = ROOT / "tests" / "workers" / "backend_cases.py"
OUT = ROOT / "docs" / "results" / "distributed.md"
FIGURES = OUT.with_suffix("")  # a folder with a file a backend
NAMES = {"multi_gpu": "DDP", "fsdp2": "FSDP2", "zero1": "ZeRO-1", "zero2": "ZeRO-2", "zero3": "ZeRO-3"}
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "deepspeed")
TOLERANCE = 1e-6  # of parameters, as in tests/test_backends.py

LINUPPER = {"weighting": "linupper"}


def scope(name: str) -> dict[str, Any]:
    return {**LINUPPER, "weighting_kwargs": {"temperature": 0.4, "warmup_ratio": 0.0, "scope": name}}


# Name in the table: job, columns of the data, options, whether it is killed as well.
JOBS: dict[str, tuple[str, tuple[str, ...], dict[str, Any], bool]] = {
    "SFT, weights in the micro-batch": ("sft", (), scope("micro_batch"), False),
    "SFT, running weights": ("sft", (), scope("running"), True),
    "SFT, weights in the step": ("sft", (), scope("step"), False),
    "Trainer, running weights": ("plain", (), scope("running"), True),
    "DPO": ("dpo", (), {}, False),
    "DPO, MADPO": ("dpo", ("reward_margin",), {"weighting": "madpo"}, True),
    "DPO, RPO": ("dpo", ("reward_margin",), {"loss_type": ["rpo"], "loss_kwargs": {"rpo": {"eta": 0.1}}}, False),
    "DPO, beta-DPO": ("dpo", (), {"loss_type": ["beta_dpo"]}, False),
    "Reward training": ("reward", (), {}, True),
}
COMMON = {
    "gradient_accumulation_steps": 2,
    "max_steps": 3,
    "lr_scheduler_type": "constant",
    "learning_rate": 0.3,
    "optim_args": "momentum=0.9",  # a state to resume; FSDP2 cannot resume an optimizer without one
    "ddp_find_unused_parameters": False,
    "save_strategy": "steps",
    "save_steps": 1,
}


def cases_of(backend: str) -> list[dict[str, Any]]:
    """Return every job, full and with LoRA."""
    found = []
    for name, (job, columns, options, killed) in JOBS.items():
        if backend == "zero1" and job not in ("sft", "dpo"):
            continue
        for lora in (False, True):
            case = {"name": f"{name}, {'LoRA' if lora else 'full'}", "job": job, "lora": lora, "batch": 4}
            found.append({**case, "columns": columns, "options": {**COMMON, **options}, "killed": killed})
    return found


def prepare(folder: Path) -> Any:
    """Write models and data, and return the tokenizer."""
    tokenizer = train_tokenizer([row["text"] for row in make_rows(64)], vocab_size=300)
    torch.manual_seed(0)
    save_policy(folder / "policy", tokenizer)
    save_reward_model(tokenizer, folder / "reward_model")
    write_pairs(folder / "pairs.jsonl", list(pairs(27)))
    return tokenizer


def start(backend: str, folder: Path, cases: list[dict[str, Any]]) -> Any:
    """Train cases in two processes."""
    path = folder / "cases.json"
    path.write_text(json.dumps(cases))
    return launch(WORKER, [str(path), str(folder)], f"cpu/{backend}", timeout=900)


def gap(one: Path, other: Path) -> float:
    """Return the largest difference of two saved models, or infinity if one is missing."""
    files = [list((folder / "model").glob("*.safetensors")) for folder in (one, other)]
    if not all(files):
        return float("inf")
    ours, theirs = (load_file(of_run[0]) for of_run in files)
    return max((value - theirs[name]).abs().max().item() for name, value in ours.items())


def measure(backend: str, start_from: Path, alone: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """Return what each job of a backend does: the figures behind the table's cells."""
    shutil.copytree(start_from, folder, dirs_exist_ok=True)
    cases = cases_of(backend)
    again = [{**case, "name": f"{case['name']} again", "continues": [case["name"], 2]} for case in cases]
    launched = start(backend, folder, cases + again)
    launched.assert_backend(backend)
    (folder / "pairs.jsonl").unlink()  # scored
    rows = {}
    for case in cases:
        name = case["name"]
        rows[name] = {
            "to one process": gap(folder / name, alone / name),
            "resumed": gap(folder / f"{name} again", folder / name),
            "killed": None,
        }
    kill_each(backend, folder, [case for case in cases if case["killed"]])
    for case in cases:
        if case["killed"]:
            rows[case["name"]]["killed"] = gap(folder / f"{case['name']} killed", folder / case["name"])
    scored, expected = (
        pq.read_table(path / "scored" / "scored.parquet")["reward_margin"].to_pylist() for path in (folder, alone)
    )
    difference = max(abs(a - b) for a, b in zip(scored, expected, strict=True))
    rows["Scoring by reward"] = {"to one process": difference, "resumed": None, "killed": None}
    return rows


def kill_each(backend: str, folder: Path, cases: list[dict[str, Any]]) -> None:
    """Kill each case in its third step; the launch that goes on with it is the one in which the next is killed."""
    waiting: list[dict[str, Any]] = []
    for case in [*cases, None]:
        now = list(waiting)
        if case is not None:
            case = {**case, "name": f"{case['name']} killed"}
            now.append({**case, "kill": [1, 3]})
            waiting = [{**case, "resume": True}]
        launched = start(backend, folder, now)
        if (launched.returncode == 0) != (case is None):
            raise RuntimeError(f"{[one['name'] for one in now]} on {backend}:\n{launched.output[-4000:]}")


def table(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Return the page."""
    lines = [
        "# Jobs on backends",
        "",
        "Made by `python benchmarks/backends_table.py`, every cell from two CPU processes (gloo): a tiny Llama in",
        "float32, SGD with momentum, three steps of eight examples. A cell is the largest difference of a parameter",
        "of the saved model (for scoring, of a reward margin)",
        "",
        f"- to what one process makes of the same examples: rounding, `yes` up to {TOLERANCE:g};",
        "- to the uninterrupted run, when the run is resumed from its second checkpoint: `yes` to the bit;",
        "- to the uninterrupted run, when SIGKILL takes rank 1 in the middle of the third step and the job is started",
        "  again: `yes` to the bit.",
        "",
        "`-` was not run: ZeRO-1 is for SFT and DPO, one variant of each job is killed, and scoring does not train",
        "(one that is killed goes on where it was, see `tests/test_scoring_engine.py`). More combinations and faults",
        "are in `tests/test_backends.py` and `tests/test_faults.py`. Nothing here was measured on a GPU.",
        "",
        ", ".join(f"{name} {version}" for name, version in versions(LIBRARIES).items()) + ".",
        "",
        "| backend | job | equals one process | resumed | killed and resumed |",
        "|---|---|---|---|---|",
    ]
    for backend, rows in results.items():
        for name, row in rows.items():
            cells = [said(row["to one process"], TOLERANCE), said(row["resumed"], 0), said(row["killed"], 0)]
            lines.append(f"| {NAMES[backend]} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def said(value: float | None, allowed: float) -> str:
    if value is None:
        return "-"
    return f"{'yes' if value <= allowed else 'NO'} ({value:.0e})" if value else "yes (0)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backends", nargs="*", metavar="BACKEND", help=f"of {', '.join(BACKENDS)}; all by default")
    options = parser.parse_args()
    unknown = set(options.backends) - set(BACKENDS)
    if unknown:
        parser.error(f"unknown backend {sorted(unknown)[0]!r}; known are {', '.join(BACKENDS)}")
    with tempfile.TemporaryDirectory() as temporary:
        top = Path(temporary)
        tokenizer = prepare(top / "start")
        alone = shutil.copytree(top / "start", top / "alone")
        run_cases(cases_of("multi_gpu"), alone, tokenizer, processes=1)
        score_pairs(alone)
        for backend in options.backends or BACKENDS:
            measured = measure(backend, top / "start", alone, top / backend)
            write(FIGURES / f"{backend}.json", json.dumps(measured, indent=2) + "\n")
            print(f"{NAMES[backend]}: {len(measured)} jobs", file=sys.stderr, flush=True)
    files = {backend: FIGURES / f"{backend}.json" for backend in BACKENDS}
    write(OUT, table({backend: json.loads(file.read_text()) for backend, file in files.items() if file.exists()}))
    print(f"The table is in {OUT}.")


def write(path: Path, text: str) -> None:
    """Write a file such that it is never seen half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)


if __name__ == "__main__":
    main()
