"""Which job runs on which backend: docs/results/distributed.md, every cell from two real CPU processes.

    python benchmarks/backends_table.py              # all backends: about three quarters of an hour on two quiet cores
    python benchmarks/backends_table.py zero3        # one; the others stay as they were measured
    python benchmarks/backends_table.py --missing    # only the jobs that have an empty cell, or no row

For each backend one launch trains every job, with a checkpoint after each of its three steps, and again from the
second one. One process trains the same. Then each job is killed: SIGKILL of rank 1 in the middle of the third step,
and another launch goes on from the last checkpoint. The jobs and the tiny models are those of tests/test_backends.py.
Jobs that train nothing are in backends_scoring.py: one launch does them all, and then each is killed after some
batches, and goes on.
"""

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import torch  # noqa: E402
from backends_scoring import KILLED_AFTER, measure_scoring, save_models, scoring_cases  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from helpers import make_rows  # noqa: E402
from hf_gradkit._compat import versions  # noqa: E402
from hf_gradkit.data.tiny import train_tokenizer  # noqa: E402
from launch import BACKENDS, launch  # noqa: E402
from pair_helpers import save_policy  # noqa: E402
from pairs import save_reward_model  # noqa: E402
from workers import scoring_cases as scoring  # noqa: E402
from workers.backend_cases import run_cases  # noqa: E402

WORKER = ROOT / "tests" / "workers" / "backend_cases.py"
OUT = ROOT / "docs" / "results" / "distributed.md"
FIGURES = OUT.with_suffix("")  # a folder with a file a backend
NAMES = {"multi_gpu": "DDP", "fsdp2": "FSDP2", "zero1": "ZeRO-1", "zero2": "ZeRO-2", "zero3": "ZeRO-3"}
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "deepspeed")
TOLERANCE = 1e-6  # of parameters, as in tests/test_backends.py
SCORE_TOLERANCE = 1e-5  # of figures of single examples, in float32

LINUPPER = {"weighting": "linupper"}


def scope(name: str) -> dict[str, Any]:
    return {**LINUPPER, "weighting_kwargs": {"temperature": 0.4, "warmup_ratio": 0.0, "scope": name}}


# Name in the table: job, columns of the data, options.
JOBS: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "SFT, weights in the micro-batch": ("sft", (), scope("micro_batch")),
    "SFT, running weights": ("sft", (), scope("running")),
    "SFT, weights in the step": ("sft", (), scope("step")),
    "SFT, resampling by loss": ("sft", ("source",), {"sampler": "personal_loss", "group_column": "source"}),
    "Trainer, running weights": ("plain", (), scope("running")),
    "DPO": ("dpo", (), {}),
    "DPO, MADPO": ("dpo", ("reward_margin",), {"weighting": "madpo"}),
    "DPO, RPO": ("dpo", ("reward_margin",), {"loss_type": ["rpo"], "loss_kwargs": {"rpo": {"eta": 0.1}}}),
    "DPO, beta-DPO": ("dpo", (), {"loss_type": ["beta_dpo"]}),
    "DPO, balanced gradients": ("dpo", (), {"gradient_balancing": "batch", "monitor_steps": 1}),
    "Reward training": ("reward", (), {}),
}
ROWS = {"SFT, resampling by loss": 16}  # an epoch of two steps, so that the third is of rows drawn by loss
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


def training_cases() -> list[dict[str, Any]]:
    """Return every job that trains, full and with LoRA."""
    found = []
    for name, (job, columns, options) in JOBS.items():
        for lora in (False, True):
            case = {"name": f"{name}, {'LoRA' if lora else 'full'}", "job": job, "lora": lora, "batch": 4}
            found.append({**case, "columns": columns, "rows": ROWS.get(name, 26), "options": {**COMMON, **options}})
    return found


def prepare(folder: Path) -> Any:
    """Write models and data, and return the tokenizer."""
    tokenizer = train_tokenizer([row["text"] for row in make_rows(64)], vocab_size=300)
    torch.manual_seed(0)
    save_policy(folder / "policy", tokenizer)
    save_reward_model(tokenizer, folder / "reward_model")
    save_models(folder, tokenizer)
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


def measure(backend: str, cases: list[dict[str, Any]], alone: Path, folder: Path) -> dict[str, dict[str, float]]:
    """Return the figures behind the cells of jobs that train."""
    again = [{**case, "name": f"{case['name']} again", "continues": [case["name"], 2]} for case in cases]
    launched = start(backend, folder, cases + again)
    launched.assert_backend(backend)
    kill_each(backend, folder, cases)
    return {
        case["name"]: {
            "to one process": gap(folder / case["name"], alone / case["name"]),
            "resumed": gap(folder / f"{case['name']} again", folder / case["name"]),
            "killed": gap(folder / f"{case['name']} killed", folder / case["name"]),
        }
        for case in cases
    }


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
        "float32, SGD with momentum, three steps of eight examples. A cell is the largest difference",
        "",
        "- to what one process makes of the same examples: rounding, `yes` up to the tolerance below;",
        "- to the uninterrupted run, when the run is resumed from its second checkpoint: `yes` to the bit;",
        "- to the uninterrupted run, when SIGKILL takes rank 1 in the middle of the third step and the job is started",
        "  again: `yes` to the bit.",
        "",
        f"Of training it is a parameter of the saved model, tolerance {TOLERANCE:g}. Of scoring, selection and",
        "audits it is a score, a row that is kept or a text that is written: texts and rows must be the same, scores",
        f"within {SCORE_TOLERANCE:g} of their size. There rank 1 is killed after {KILLED_AFTER} batches, and the next",
        "launch scores only what was not finished, in other batches, hence the tolerance. The audits' reference is a",
        "second model of a whole one, and the adapter switched off. Under FSDP2 and ZeRO-3 audited models are split",
        "over the processes; scoring and selection hold whole models on each.",
        "",
        "`-` does not apply. More combinations and faults are in `tests/test_backends.py` and `tests/test_faults.py`.",
        "Nothing here was measured on a GPU.",
        "",
        ", ".join(f"{name} {version}" for name, version in versions(LIBRARIES).items()) + ".",
        "",
        "| backend | job | runs | equals one process | resumed | killed and resumed |",
        "|---|---|---|---|---|---|",
    ]
    for backend, rows in results.items():
        for name, row in rows.items():
            scored = name in {case["name"] for case in scoring_cases()}
            near, after_kill = (SCORE_TOLERANCE, SCORE_TOLERANCE) if scored else (TOLERANCE, 0)
            cells = [said(row["to one process"], near), said(row["resumed"], 0), said(row["killed"], after_kill)]
            lines.append(f"| {NAMES[backend]} | {name} | yes | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def said(value: float | None, allowed: float) -> str:
    if value is None:
        return "-"
    return f"{'yes' if value <= allowed else 'NO'} ({value:.0e})" if value else "yes (0)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backends", nargs="*", metavar="BACKEND", help=f"of {', '.join(BACKENDS)}; all by default")
    parser.add_argument("--missing", action="store_true", help="only jobs without a row, or with an empty cell")
    parser.add_argument(
        "--jobs", default="", metavar="PATTERN", help="only jobs in whose names this regular expression is found"
    )
    options = parser.parse_args()
    unknown = set(options.backends) - set(BACKENDS)
    if unknown:
        parser.error(f"unknown backend {sorted(unknown)[0]!r}; known are {', '.join(BACKENDS)}")
    for backend in options.backends or BACKENDS:
        for cases, work in ((scoring_cases(), score), (training_cases(), train)):
            rows = {} if not (FIGURES / f"{backend}.json").exists() else read(backend)
            wanted = [case for case in cases if re.search(options.jobs, case["name"])]
            if options.missing:
                wanted = [case for case in wanted if rows.get(case["name"], {}).get("killed") is None]
            if wanted:
                rows |= work(backend, wanted)
                known = [case["name"] for case in training_cases() + scoring_cases() if case["name"] in rows]
                write(FIGURES / f"{backend}.json", json.dumps({name: rows[name] for name in known}, indent=2) + "\n")
                print(f"{NAMES[backend]}: {len(wanted)} jobs", file=sys.stderr, flush=True)
    write(OUT, table({backend: read(backend) for backend in BACKENDS if (FIGURES / f"{backend}.json").exists()}))
    print(f"The table is in {OUT}.")


def train(backend: str, cases: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the figures of jobs that train, measured now."""
    with prepared() as (tokenizer, alone, folder):
        run_cases(cases, alone, tokenizer, processes=1)
        return measure(backend, cases, alone, folder)


def score(backend: str, cases: list[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Return the figures of the others, measured now."""
    with prepared() as (_, alone, folder):
        scoring.run_cases(cases, alone)
        return measure_scoring(backend, cases, alone, folder)


@contextmanager
def prepared() -> Iterator[tuple[Any, Path, Path]]:
    """Give the tokenizer, and two folders with models: for one process, and for two."""
    with tempfile.TemporaryDirectory() as temporary:
        tokenizer = prepare(Path(temporary) / "start")
        alone, folder = (shutil.copytree(Path(temporary) / "start", Path(temporary) / of) for of in ("one", "two"))
        yield tokenizer, alone, folder


def read(backend: str) -> dict[str, dict[str, Any]]:
    """Return the figures of a backend that were measured before."""
    return json.loads((FIGURES / f"{backend}.json").read_text())


def write(path: Path, text: str) -> None:
    """Write a file such that it is never seen half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)


if __name__ == "__main__":
    main()
