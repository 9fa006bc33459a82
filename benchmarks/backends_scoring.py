"""The jobs that train nothing, for benchmarks/backends_table.py: scoring, selection and audits on two processes."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from launch import BACKENDS, Launched, launch

WORKER = Path(__file__).resolve().parent.parent / "tests" / "workers" / "scoring_cases.py"
# Name in the table: job and options.
JOBS: dict[str, tuple[str, dict[str, Any]]] = {
    "Scoring by reward": ("reward", {}),
    "Scoring by loss, perplexity and EL2N": ("difficulty", {"by": ["loss", "perplexity", "el2n"]}),
    "Scoring by GraNd": ("difficulty", {"by": ["grand"]}),
    "Selection, FiFA by reward model and perplexity": ("select", {}),
    "Audit, membership": ("membership", {}),
    "Audit, extraction": ("extraction", {}),
}
KILLED_AFTER = 3  # batches of process 1


def scoring_cases() -> list[dict[str, Any]]:
    """Return every job, by a whole model and by an adapter."""
    return [
        {"name": f"{name}, {kind}", "job": job, "model": model, "options": options}
        for name, (job, options) in JOBS.items()
        for kind, model in (("full", "full"), ("LoRA", "lora"))
    ]


def save_models(folder: Path, tokenizer: Any) -> None:
    """Write the models that score, beside `policy` and `reward_model`: whole ones, and adapters of them."""
    shutil.copytree(folder / "policy", folder / "base")
    shutil.copytree(folder / "reward_model", folder / "reward_full")
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype="float32")
    with torch.no_grad():
        for parameter in model.parameters():  # as after fine-tuning: near the base, and not the same
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder / "full")
    tokenizer.save_pretrained(folder / "full")
    options = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False}
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype="float32")
    get_peft_model(base, LoraConfig(**options, task_type="CAUSAL_LM")).save_pretrained(folder / "lora")
    rewarding = AutoModelForSequenceClassification.from_pretrained(folder / "reward_model", dtype="float32")
    get_peft_model(rewarding, LoraConfig(**options, task_type="SEQ_CLS")).save_pretrained(folder / "reward_lora")
    for name in ("lora", "reward_lora"):
        tokenizer.save_pretrained(folder / name)


def measure_scoring(
    backend: str, cases: list[dict[str, Any]], alone: Path, folder: Path
) -> dict[str, dict[str, float | None]]:
    """Return the figures behind each job's cells: differences to one process, and to the run that was not killed."""
    launched = start(backend, folder, cases)
    launched.assert_world(BACKENDS[backend]["distributed_type"])
    rows = {}
    for case in cases:
        rows[case["name"]] = {"to one process": gap(folder, alone, case["name"]), "resumed": None}
    waiting: list[dict[str, Any]] = []
    for case in [*cases, None]:
        now = list(waiting)
        if case is not None:
            again = {**case, "name": f"{case['name']} killed"}
            now.append({**again, "kill": KILLED_AFTER})
        launched = start(backend, folder, now)
        finished = all((folder / f"{one['name']}.json").exists() for one in waiting)
        if not finished or (launched.returncode == 0) != (case is None):
            raise RuntimeError(f"{[one['name'] for one in now]} on {backend}:\n{launched.output[-8000:]}")
        waiting = [again]
    for case in cases:
        name = case["name"]
        whole, rest = (read(folder, of)["scored"] for of in (name, f"{name} killed"))
        if not 0 < rest < whole:
            raise RuntimeError(f"{name} on {backend} was killed, and scored {rest} of {whole} rows afterwards.")
        rows[name]["killed"] = gap(folder, folder, name, f"{name} killed")
    return rows


def start(backend: str, folder: Path, cases: list[dict[str, Any]]) -> Launched:
    """Do jobs in two processes."""
    path = folder / "scoring.json"
    path.write_text(json.dumps(cases))
    return launch(WORKER, [str(path), str(folder)], f"cpu/{backend}", timeout=900)


def read(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / f"{name}.json").read_text())


def gap(one: Path, other: Path, name: str, other_name: str | None = None) -> float:
    """Return the largest difference of a figure, relative to it where it exceeds 1, or infinity where texts differ."""
    ours, theirs = read(one, name)["figures"], read(other, other_name or name)["figures"]
    largest = 0.0
    for figure, values in ours.items():
        for a, b in zip(values, theirs[figure], strict=True):
            if isinstance(a, str):
                largest = largest if a == b else float("inf")
            else:
                largest = max(largest, abs(a - b) / max(1.0, abs(b)))
    return largest
