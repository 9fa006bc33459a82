"""Run in each of several processes, or alone: audit a model, or train one that is audited (JSON file in and out)."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from datasets import Dataset
from torch.distributed.tensor import DTensor

import hf_gradkit
from audit_helpers import LENGTH, records
from helpers import DEFAULTS
from hf_gradkit._backends import prepare_cpu_backends
from hf_gradkit.audit import audit_extraction, audit_membership, hold_out
from hf_gradkit.audit.models import AuditedModel
from hf_gradkit.callbacks.privacy_audit import PrivacyAuditCallback
from hf_gradkit.cli.audit import main as audit_command
from hf_gradkit.cli.job import release
from hf_gradkit.data.synthetic_secrets import canary_rows
from hf_gradkit.scoring import SFTFormat
from hf_gradkit.scoring.processes import world
from launch import REPORT, report_world

ROWS = 75  # 19 batches of examples: the last round has a batch for one process only
FORWARD = ("loss", "zlib", "min_k", "min_k_plus_plus", "flora", "log_reference", "error_zone", "window")
# Prefixes of 40 tokens of records of 60 to 72: the batches' guesses end at different lengths. 3 batches of prompts, 9
# of guesses.
PROMPTS = {"prefix_tokens": 40, "suffix_tokens": 30, "generations": 2, "max_examples": 6}


def audit(case: dict, folder: Path) -> dict:
    """Return what both audits say of a model that was trained before, and which part of it each process holds."""
    options = {"layout": SFTFormat(max_length=LENGTH), "batch_size": 4, "reference_model": case.get("reference")}
    options["cache_folder"] = folder / f"{case['name']}-cache"
    member = partial(audit_membership, case["model"], records(ROWS), bootstrap_rounds=20, **options)
    found = member(attacks=[*FORWARD, "gradient_norm"])
    try:
        stepped = member(attacks=["gradient_norm", "step_ratio"], attack_kwargs={"gradient_norm": {"p": "1"}})
        found.scores.update({f"{name} stepped": scores for name, scores in stepped.scores.items()})
        refused = None
    except ValueError as error:
        refused = str(error)
    return {
        "scores": {name: scores.tolist() for name, scores in found.scores.items()},
        "gate": found.figures["gate"],
        "refused": refused,
        "part": part_held(case["model"]),
        **({} if case.get("command") else extract(case["model"], options)),
    }


def extract(model: str, options: dict) -> dict:
    """Return what the extraction audit says."""
    written = audit_extraction(model, records(ROWS), canaries=canaries(), **PROMPTS, **options)
    return {
        "p_z": written.p_z.tolist(),
        "guesses": written.guesses,
        "members": written.figures["members"],
        "canaries": written.figures["canaries"],
    }


def command(case: dict, folder: Path) -> dict:
    """Return the figures that `gradkit audit extraction` writes; the processes belong together no more then."""
    data, out = folder / "records.jsonl", folder / "command"
    if world().is_main_process:
        records(ROWS).to_json(data)
    world().wait_for_everyone()
    options = {"model_name_or_path": case["model"], "dataset_name": data, "output_dir": out, "max_length": LENGTH}
    options |= {"per_device_eval_batch_size": 4, **PROMPTS}
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    assert audit_command(["extraction", *arguments]) == 0
    return json.loads((out / "extraction.json").read_text())["members"]


def canaries() -> Dataset:
    return Dataset.from_list(canary_rows(2, seed=0, alternatives=7))


def part_held(model: str) -> float:
    """Return which part of a model's parameters this process holds when it is audited."""
    ((_, opened),) = AuditedModel(model).open(("target",))
    held = [p.to_local() if isinstance(p, DTensor) else getattr(p, "ds_tensor", p) for p in opened.parameters()]
    whole = [p.ds_numel if hasattr(p, "ds_numel") else p.numel() for p in opened.parameters()]
    return sum(p.numel() for p in held) / sum(whole)


def watch(case: dict, folder: Path, processes: int):
    """Train with the callback, a batch being that of all processes together, and return the trainer."""
    split = hold_out(records(ROWS), 19 / ROWS)
    options = {**DEFAULTS, "max_steps": -1, "num_train_epochs": 2, "max_length": LENGTH, "learning_rate": 0.05}
    options |= {"per_device_train_batch_size": 4 // processes, "per_device_eval_batch_size": 6}
    trainer = hf_gradkit.SFTTrainer(
        model=case["base"],
        args=hf_gradkit.SFTConfig(
            output_dir=str(folder / f"{case['name']}-{processes}"), model_init_kwargs={"dtype": "float32"}, **options
        ),
        train_dataset=split.train,
        eval_dataset=split.held_out,
    )
    trainer.add_callback(PrivacyAuditCallback(trainer=trainer, attacks=None))
    trainer.train()
    return trainer


@contextmanager
def as_on_gpus() -> Iterator[None]:
    """Let FSDP leave models empty on all processes but one while they are loaded, as the files for GPUs ask for."""
    before = os.environ.get("FSDP_CPU_RAM_EFFICIENT_LOADING")
    if before is not None:
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "true"
    yield
    if before is not None:
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = before


def main() -> None:
    prepare_cpu_backends()
    cases, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    trainer = None
    for case in cases:
        if case["kind"] == "audit":
            with as_on_gpus():
                result = audit(case, folder)
            path = folder / f"{case['name']}.rank{world().process_index}.json"
            path.write_text(json.dumps(result))
        elif case["kind"] == "watch":
            trainer = watch(case, folder, processes=2)
    if REPORT in os.environ:
        report_world(trainer)
    if trainer is not None:
        release(trainer)
    rank = world().process_index
    (by_command,) = (case for case in cases if case.get("command"))
    (folder / f"command.rank{rank}.json").write_text(json.dumps(command(by_command, folder)))


if __name__ == "__main__":
    main()
