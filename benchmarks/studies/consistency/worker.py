"""Trains the runs of `tasks.json` on each of the processes that run.py starts."""

import json
import logging
import os
import sys
from pathlib import Path

# Before torch is imported.
os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TQDM_DISABLE="1", TOKENIZERS_PARALLELISM="false")

import torch
import trl
from accelerate import PartialState
from datasets import Dataset
from torch.utils.data import DataLoader

from hf_gradkit import WorkerConsistencyCallback
from hf_gradkit.data.synthetic import instruction_rows
from hf_gradkit.data.tiny import tiny_llama, train_tokenizer


class OwnOrder(trl.SFTTrainer):
    """Each rank draws from the whole data by a seed of its own, as a script does that shards nothing."""

    seeds: list[int]

    def get_train_dataloader(self):
        generator = torch.Generator().manual_seed(self.seeds[PartialState().process_index])
        size = self.args.per_device_train_batch_size
        return DataLoader(self.train_dataset, size, shuffle=True, generator=generator, collate_fn=self.data_collator)


class Messages(logging.Handler):
    """Keeps what the callback warns of, and when."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.kept: list[str] = []

    def emit(self, record):
        self.kept.append(record.getMessage())


def train(task: dict, steps: int, folder: Path, tokenizer, dataset) -> None:
    """Train one run, and write what the monitor said of it."""
    args = trl.SFTConfig(
        output_dir=str(folder / task["name"]),
        max_steps=steps,
        per_device_train_batch_size=8,
        learning_rate=0.3,
        optim="sgd",
        lr_scheduler_type="constant",
        seed=task["seed"],
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        max_length=64,
    )
    torch.manual_seed(0)
    model = tiny_llama(tokenizer, hidden_size=64)
    trainer_class = trl.SFTTrainer if task["seeds"] is None else OwnOrder
    trainer = trainer_class(model=model, args=args, train_dataset=dataset, processing_class=tokenizer)
    trainer.seeds = task["seeds"]
    monitor, messages = WorkerConsistencyCallback(trainer=trainer), Messages()
    logger = logging.getLogger("hf_gradkit.callbacks.worker_consistency")
    logger.addHandler(messages)
    warned_at: list[int] = []

    class When(trl.trainer.sft_trainer.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if messages.kept and not warned_at:
                warned_at.append(state.global_step)

    trainer.add_callback(monitor)
    trainer.add_callback(When())
    trainer.train()
    logger.removeHandler(messages)
    if PartialState().is_main_process:
        lines = (folder / task["name"] / "worker_consistency.jsonl").read_text().splitlines()
        result = {
            "lines": [json.loads(line) for line in lines],
            "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
            "warnings": messages.kept,
            "warned_at": warned_at[0] if warned_at else None,
        }
        (folder / f"{task['name']}.json").write_text(json.dumps(result))
    trainer.model_wrapped = trainer.model
    trainer.accelerator.free_memory()


def main() -> None:
    """Train all runs, on four processes together."""
    folder = Path(sys.argv[1])
    plan = json.loads((folder / "tasks.json").read_text())
    rows = instruction_rows(2000, seed=0, shares={"useful": 0.5, "noisy": 0.5})
    dataset = Dataset.from_dict({"text": [row["prompt"] + " " + row["completion"] for row in rows]})
    tokenizer = train_tokenizer(dataset["text"][:500], vocab_size=300)
    for task in plan["tasks"]:
        train(task, plan["steps"], folder, tokenizer, dataset)
    assert PartialState().num_processes == 4


if __name__ == "__main__":
    main()
