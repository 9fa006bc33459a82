"""Run in each of several processes, or alone: audit a model, or train one that is audited (JSON file in and out)."""

import json
import os
import sys
from pathlib import Path

import hf_gradkit
from audit_helpers import LENGTH, records
from helpers import DEFAULTS
from hf_gradkit._backends import prepare_cpu_backends
from hf_gradkit.audit import audit_extraction, audit_membership, hold_out
from hf_gradkit.callbacks.privacy_audit import PrivacyAuditCallback
from hf_gradkit.scoring import SFTFormat
from hf_gradkit.scoring.processes import world
from launch import REPORT, report_world

ROWS = 79  # odd, so that the last round has a batch for one process only


def audit(case: dict, folder: Path) -> dict:
    """Return the scores of both audits of a model that was trained before."""
    options = {"layout": SFTFormat(max_length=LENGTH), "batch_size": 4, "reference_model": case["reference"]}
    options["cache_folder"] = folder / f"{case['name']}-cache"
    found = audit_membership(case["model"], records(case["rows"]), bootstrap_rounds=20, **options)
    short = {"prefix_tokens": 20, "suffix_tokens": 12, "generations": 2}
    written = audit_extraction(case["model"], records(case["rows"]), **short, **options)
    return {
        "scores": {name: scores.tolist() for name, scores in found.scores.items()},
        "gate": found.figures["gate"],
        "p_z": written.p_z.tolist(),
        "guesses": written.guesses,
        "verbatim": written.figures["members"]["verbatim"],
    }


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


if __name__ == "__main__":
    main()
