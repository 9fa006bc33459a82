"""What the arms of a seed share: a fine-tuned policy, reward models, and the pairs with their margins.

All of it is made by the commands that users have, `gradkit sft`, `reward` and `score`, once, and kept in a folder.
"""

import json
from pathlib import Path

from data import divide, read_pairs, write_rows
from transformers import set_seed

from hf_gradkit.cli import main
from hf_gradkit.data.tiny import tiny_llama, train_tokenizer

VOCABULARY, HIDDEN, LAYERS, LONGEST = 2048, 64, 2, 256
FOLDS = 3
# Everything that is the same in every training run.
PLAIN = {
    "use_cpu": True,
    "bf16": False,
    "activation_checkpointing": False,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "per_device_train_batch_size": 16,
    "max_length": LONGEST,
    "lr_scheduler_type": "cosine",
    "logging_steps": 10,
}
SFT = {"num_train_epochs": 3, "learning_rate": 3e-3, "warmup_steps": 20}
REWARD = {"num_train_epochs": 2, "learning_rate": 1e-3, "warmup_steps": 10}


def gradkit(command: str, **options) -> None:
    """Run a command of gradkit in this process, and stop if it fails."""
    set_seed(options.get("seed", 0))  # the reward model's head is drawn before its trainer sets the seed
    words = [word for name, value in options.items() for word in (f"--{name}", _text(value))]
    if main.main([command, *words]) != 0:
        raise RuntimeError(f"gradkit {command} failed; it says why above.")


def _text(value) -> str:
    return json.dumps(value) if isinstance(value, (dict, bool)) else str(value)


def make_data(source: Path, folder: Path) -> None:
    """Write train.jsonl, held_out.jsonl and sft.jsonl, and the tokenizer, the same for all seeds."""
    if (folder / "tokenizer").exists():
        return
    train, held_out = divide(read_pairs(source))
    write_rows(folder / "train.jsonl", train)
    write_rows(folder / "held_out.jsonl", held_out)
    for name, rows in (("sft", train), ("sft_held_out", held_out)):
        write_rows(folder / f"{name}.jsonl", [{"text": row["prompt"] + row["chosen"]} for row in rows])
    train_tokenizer((row["prompt"] + row["chosen"] for row in train), VOCABULARY).save_pretrained(folder / "tokenizer")


def make_world(seed: int, data: Path, folder: Path) -> None:
    """Train the policy and the reward models of a seed, and score the pairs."""
    if (folder / "done").exists():
        return
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(data / "tokenizer")
    tiny_llama(tokenizer, HIDDEN, LAYERS, max_length=LONGEST, seed=seed).save_pretrained(folder / "start")
    tokenizer.save_pretrained(folder / "start")
    gradkit(
        "sft", seed=seed, model_name_or_path=folder / "start", dataset_name=data / "sft.jsonl",
        eval_dataset_name=data / "sft_held_out.jsonl", eval_strategy="epoch", output_dir=folder / "policy",
        **PLAIN, **SFT,
    )  # fmt: skip
    pairs = {"seed": seed, "model_name_or_path": folder / "policy", "dataset_name": data / "train.jsonl"}
    gradkit("reward", output_dir=folder / "reward", **pairs, **PLAIN, **REWARD)
    gradkit("reward", output_dir=folder / "reward_folds", folds=FOLDS, **pairs, **PLAIN, **REWARD)
    for name, model, split in (
        ("in_sample", "reward", "train"),
        ("cross_fitted", "reward_folds", "train"),
        ("held_out", "reward", "held_out"),
    ):
        gradkit(
            "score", by="reward", model_name_or_path=folder / model, dataset_name=data / f"{split}.jsonl",
            output_dir=folder / "scores" / name, per_device_eval_batch_size=64, use_cpu=True,
        )  # fmt: skip
    (folder / "done").touch()
