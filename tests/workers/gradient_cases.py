"""Run in each of two processes: watch the gradients of a list of runs (JSON file in, logs and losses out)."""

import json
import sys
from pathlib import Path

import trl
from peft import LoraConfig

import hf_gradkit
from helpers import logs_without_timings
from hf_gradkit import EntanglementCallback
from hf_gradkit._backends import prepare_cpu_backends
from hf_gradkit.cli.job import release
from launch import report_world
from pair_helpers import dpo, pairs

CLASSES = {
    "trl": (trl.DPOTrainer, trl.DPOConfig),
    "ours": (hf_gradkit.DPOTrainer, hf_gradkit.DPOConfig),
}


def watch(case: dict, folder: Path, processes: int):
    """Train a case, whose batch is that of all processes together, and return the trainer."""
    keywords = {}
    if case.get("lora"):
        keywords["peft_config"] = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = dpo(
        *CLASSES[case["trainer"]],
        str(folder / "policy"),
        folder / f"{case['name']}-{processes}",
        pairs(26),
        trainer_kwargs=keywords,
        per_device_train_batch_size=case["batch"] // processes,
        model_init_kwargs={"dtype": "float32"},
        **case["options"],
    )
    if "callback" in case:
        trainer.add_callback(EntanglementCallback(**case["callback"]))
    trainer.train()
    return trainer


def main() -> None:
    prepare_cpu_backends()
    cases, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    trainer = None
    for case in cases:
        if trainer is not None:
            release(trainer)
        trainer = watch(case, folder, processes=2)
        if trainer.accelerator.is_main_process:
            (folder / f"{case['name']}.json").write_text(json.dumps(logs_without_timings(trainer)))
    report_world(trainer)
    release(trainer)


if __name__ == "__main__":
    main()
