"""Run in each of two processes, or alone: train a list of cases of any kind (JSON file in, results and models out).

A case's `batch` is that of all processes together, so that one process can do the same.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling, TrainerCallback

import hf_gradkit
from helpers import DEFAULTS, logs_without_timings, text_dataset
from hf_gradkit._backends import prepare_cpu_backends
from hf_gradkit.cli import score
from hf_gradkit.cli.job import release
from launch import report_world
from pair_helpers import pairs

CLASSES = {
    "sft": (hf_gradkit.SFTTrainer, hf_gradkit.SFTConfig),
    "plain": (hf_gradkit.Trainer, hf_gradkit.TrainingArguments),
    "dpo": (hf_gradkit.DPOTrainer, hf_gradkit.DPOConfig),
    "reward": (hf_gradkit.RewardTrainer, hf_gradkit.RewardConfig),
}
LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": ["q_proj", "v_proj", "down_proj"]}


def run_cases(cases: list[dict[str, Any]], folder: Path, tokenizer: Any, processes: int) -> Any:
    """Train each case in turn, write what came out, and return the last trainer."""
    trainer = None
    for case in cases:
        if trainer is not None:
            release(trainer)
        if case.get("continues") is not None:
            copy_until(folder, *case["continues"], case["name"])
        trainer = build(case, folder, tokenizer, processes)
        checkpoint = case.get("continues") and str(folder / case["name"] / f"checkpoint-{case['continues'][1]}")
        if case.get("kill") is not None:
            trainer.add_callback(Kill(trainer.accelerator.process_index, *case["kill"]))
        trainer.train(resume_from_checkpoint=case.get("resume") or checkpoint)
        trainer.save_model(str(folder / case["name"] / "model"))
        if trainer.accelerator.is_main_process:
            logs = logs_without_timings(trainer)
            (folder / case["name"] / "logs.json").write_text(json.dumps(logs))
    return trainer


class Kill(TrainerCallback):
    """Kills a rank in the middle of a step."""

    def __init__(self, here: int, rank: int, step: int):
        self.here, self.rank, self.step = here, rank, step

    def on_substep_end(self, args, state, control, **kwargs):
        if self.here == self.rank and state.global_step == self.step - 1:
            os.kill(os.getpid(), signal.SIGKILL)


def build(case: dict[str, Any], folder: Path, tokenizer: Any, processes: int) -> Any:
    trainer_class, config_class = CLASSES[case["job"]]
    args = config_class(
        **{
            "output_dir": str(folder / case["name"]),
            **DEFAULTS,
            "per_device_train_batch_size": case["batch"] // processes,
            **({} if case["job"] == "plain" else {"model_init_kwargs": {"dtype": "float32"}}),
            **case["options"],
        }
    )
    if case.get("reward_model"):
        args.reward_model_name_or_path = str(folder / "reward_model")
    model, keywords = str(folder / "policy"), {}
    if case["lora"] and case["job"] != "plain":
        keywords["peft_config"] = LoraConfig(**LORA, task_type="SEQ_CLS" if case["job"] == "reward" else "CAUSAL_LM")
    if case["job"] == "plain":
        model = AutoModelForCausalLM.from_pretrained(model, dtype="float32")
        model = get_peft_model(model, LoraConfig(**LORA, task_type="CAUSAL_LM")) if case["lora"] else model
        keywords["data_collator"] = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    return trainer_class(model=model, args=args, train_dataset=data(case, tokenizer), **keywords)


def data(case: dict[str, Any], tokenizer: Any) -> Dataset:
    if case["job"] in ("dpo", "reward"):
        return pairs(26, *case["columns"])
    rows = text_dataset(case.get("rows", 26), *case["columns"])
    return rows.map(lambda row: tokenizer(row["text"]), remove_columns="text") if case["job"] == "plain" else rows


def copy_until(folder: Path, source: str, step: int, target: str) -> None:
    """Copy a run's folder as a process that was killed after the checkpoint of `step` might have left it."""
    if PartialState().is_main_process:
        later = shutil.ignore_patterns("model", "logs.json", *(f"checkpoint-{n}" for n in range(step + 1, 100)))
        shutil.copytree(folder / source, folder / target, ignore=later)
    PartialState().wait_for_everyone()


def score_pairs(folder: Path) -> None:
    """Score pairs through the command line, as `accelerate launch` would with the files for GPUs."""
    before = os.environ.get("FSDP_CPU_RAM_EFFICIENT_LOADING")
    if before is not None:
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "true"
    data, out, model = (str(folder / name) for name in ("pairs.jsonl", "scored", "reward_model"))
    batch = ["--per_device_eval_batch_size", "2"]
    assert (
        score.main(
            ["--by", "reward", "--model_name_or_path", model, "--dataset_name", data, "--output_dir", out, *batch]
        )
        == 0
    )
    if before is not None:
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = before


def main() -> None:
    prepare_cpu_backends()
    cases, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    trainer = run_cases(cases, folder, AutoTokenizer.from_pretrained(folder / "policy"), processes=2)
    report_world(trainer)
    release(trainer)
    if (folder / "pairs.jsonl").exists():
        score_pairs(folder)  # ends the process group


if __name__ == "__main__":
    main()
