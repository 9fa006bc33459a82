"""Run in each of several processes, or alone: audit a model, or train one that is audited (JSON file in and out)."""

import json
import os
import sys
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
from hf_gradkit.data.synthetic_secrets import canary_rows
from hf_gradkit.scoring import SFTFormat
from hf_gradkit.scoring.processes import world
from launch import REPORT, report_world

ROWS = 75  # 19 batches of examples and 57 of guesses, so that the last round has a batch for one process only
FORWARD = ("loss", "zlib", "min_k", "min_k_plus_plus", "flora", "log_reference", "error_zone", "window")
# Prefixes of 40 tokens of records of 60 to 72: the batches' guesses end at different lengths.
PROMPTS = {"prefix_tokens": 40, "suffix_tokens": 30, "generations": 2}


def audit(case: dict, folder: Path) -> dict:
    """Return what both audits say of a model that was trained before, and which part of it each process holds."""
    options = {"layout": SFTFormat(max_length=LENGTH), "batch_size": 4, "reference_model": case.get("reference")}
    options["cache_folder"] = folder / f"{case['name']}-cache"
    member = partial(audit_membership, case["model"], records(ROWS), bootstrap_rounds=20, **options)
    found = member(attacks=[*FORWARD, "gradient_norm"])
    written = audit_extraction(case["model"], records(ROWS), canaries=canaries(), **PROMPTS, **options)
    try:
        stepped = member(attacks=["gradient_norm", "step_ratio"], attack_kwargs={"gradient_norm": {"p": "1"}})
        found.scores.update({f"{name} stepped": scores for name, scores in stepped.scores.items()})
        refused = None
    except ValueError as error:
        refused = str(error)
    return {
        "scores": {name: scores.tolist() for name, scores in found.scores.items()},
        "gate": found.figures["gate"],
        "p_z": written.p_z.tolist(),
        "guesses": written.guesses,
        "verbatim": written.figures["members"]["verbatim"],
        "canaries": written.figures["canaries"],
        "refused": refused,
        "part": part_held(case["model"]),
    }


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


def main() -> None:
    prepare_cpu_backends()
    cases, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    trainer = None
    for case in cases:
        if case["kind"] == "audit":
            result = audit(case, folder)
            path = folder / f"{case['name']}.rank{world().process_index}.json"
            path.write_text(json.dumps(result))
        else:
            trainer = watch(case, folder, processes=2)
    if REPORT in os.environ:
        report_world(trainer)
    if trainer is not None:  # DDP goes before the process group; see hf_gradkit.cli.job.end_run
        trainer.model_wrapped = trainer.model
        trainer.accelerator.free_memory()
    world().destroy_process_group()


if __name__ == "__main__":
    main()
