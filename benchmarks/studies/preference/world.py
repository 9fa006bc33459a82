"""The world of a seed: a reference policy, preference pairs of one quality, reward models and the margins they give.

Everything is made once, kept in a folder, and read from there by all arms.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoTokenizer, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast
from trl import RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from hf_gradkit.data.synthetic_pairs import base_rows, preference_rows, prompts
from hf_gradkit.data.tiny import tiny_llama, train_tokenizer

BASE_ROWS, PAIRS, HELD_OUT_PAIRS, FOLDS = 4000, 1280, 128, 4
SFT_STEPS, SFT_RATE = 400, 3e-3
REWARD_EPOCHS, REWARD_RATE = 6, 1e-3
LONGEST = 64
SIDES = ("chosen", "rejected")
# Everything that is the same in every training run.
PLAIN = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "per_device_train_batch_size": 32,
    "max_length": LONGEST,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "logging_steps": 20,
}


@dataclass(frozen=True)
class World:
    """What the arms of one seed and quality share.

    Attributes:
        policy: folder of the reference policy.
        reward: folder of the reward model trained on all pairs, the proxy.
        pairs: training pairs, with columns prompt, chosen, rejected, true_margin, in_sample, cross_fitted.
        held_out: pairs of the test prompts, never trained on.
    """

    policy: Path
    reward: Path
    pairs: list[dict]
    held_out: list[dict]


def write_json(path: Path, value) -> None:
    """Write JSON under a temporary name first, so that an interrupted run leaves no half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value))
    os.replace(temporary, path)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer that is kept with a model."""
    return AutoTokenizer.from_pretrained(folder)


def make_policy(seed: int, output: Path) -> Path:
    """Train the reference policy of a seed on the base process, once, and return its folder."""
    folder = output / "policies" / f"seed{seed}"
    if (folder / "done").exists():
        return folder
    # The tokenizer knows every word of every prompt and is the same for all seeds.
    texts = [row["prompt"] + row["completion"] for row in base_rows(2000, seed=0)] + prompts("test") * 10
    tokenizer = train_tokenizer(texts, 512)
    rows = base_rows(BASE_ROWS, seed)
    args = SFTConfig(
        output_dir=str(output / "trainer"), max_steps=SFT_STEPS, learning_rate=SFT_RATE, lr_scheduler_type="cosine",
        warmup_steps=20, completion_only_loss=True, seed=seed, **PLAIN,
    )  # fmt: skip
    model = tiny_llama(tokenizer, hidden_size=64, layers=2, max_length=LONGEST * 2, seed=seed)
    SFTTrainer(model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer).train()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "done").touch()
    return folder


def train_reward_model(policy: Path, pairs: list[dict], seed: int, output: Path) -> LlamaForSequenceClassification:
    """Train a reward model on pairs: the reference policy with a linear head, by Bradley-Terry."""
    torch.manual_seed(seed)
    model = LlamaForSequenceClassification.from_pretrained(policy, num_labels=1)
    args = RewardConfig(
        output_dir=str(output / "trainer"), num_train_epochs=REWARD_EPOCHS, learning_rate=REWARD_RATE,
        lr_scheduler_type="cosine", warmup_steps=5, seed=seed, **PLAIN,
    )  # fmt: skip
    rows = [{key: pair[key] for key in ("prompt", "chosen", "rejected")} for pair in pairs]
    trainer = RewardTrainer(
        model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=load_tokenizer(policy)
    )
    trainer.train()
    return model.eval()


@torch.no_grad()
def rewards(model, tokenizer, asked: list[str], answers: list[str]) -> torch.Tensor:
    """Return the reward model's figure for each answer. (n,)"""
    model.eval()
    figures = []
    for begin in range(0, len(asked), 128):
        texts = zip(asked[begin : begin + 128], answers[begin : begin + 128], strict=True)
        batch = tokenizer(
            [p + a + tokenizer.eos_token for p, a in texts], return_tensors="pt", padding=True, padding_side="right"
        )
        batch.pop("token_type_ids", None)
        figures.append(model(**batch, use_cache=False).logits.squeeze(-1).float())
    return torch.cat(figures)


def margins(model, tokenizer, pairs: list[dict]) -> list[float]:
    """Return the reward model's margin, chosen minus rejected, of each pair."""
    asked = [pair["prompt"] for pair in pairs]
    chosen, rejected = (rewards(model, tokenizer, asked, [pair[side] for pair in pairs]) for side in SIDES)
    return (chosen - rejected).tolist()


def make_world(seed: int, quality: str, output: Path) -> World:
    """Make the world of a seed and quality, once, and return it. Its policy must be there."""
    policy = output / "policies" / f"seed{seed}"
    folder = output / "worlds" / f"seed{seed}-{quality}"
    held_out = preference_rows(HELD_OUT_PAIRS, seed, quality, split="test")
    if not (folder / "world.json").exists():
        pairs = preference_rows(PAIRS, seed, quality)
        tokenizer = load_tokenizer(policy)
        for fold in range(FOLDS):
            rest = [pair for i, pair in enumerate(pairs) if i % FOLDS != fold]
            model = train_reward_model(policy, rest, seed, output)
            for pair, margin in zip(pairs[fold::FOLDS], margins(model, tokenizer, pairs[fold::FOLDS]), strict=True):
                pair["cross_fitted"] = margin
        model = train_reward_model(policy, pairs, seed, output)
        for pair, margin in zip(pairs, margins(model, tokenizer, pairs), strict=True):
            pair["in_sample"] = margin
        model.save_pretrained(folder / "reward")
        unseen = margins(model, tokenizer, held_out)
        right = [(m > 0) == (pair["true_margin"] > 0) for m, pair in zip(unseen, held_out, strict=True)]
        write_json(folder / "world.json", {"pairs": pairs, "held_out_accuracy": sum(right) / len(right)})
    pairs = json.loads((folder / "world.json").read_text())["pairs"]
    return World(policy, folder / "reward", pairs, held_out)


def load_policy(folder: Path) -> LlamaForCausalLM:
    """Return the reference policy, to train or to compare with."""
    return LlamaForCausalLM.from_pretrained(folder)
