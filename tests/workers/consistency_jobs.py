"""The jobs that the consistency monitor watches in healthy runs, one trainer each."""

import os
from typing import Any

import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    DataCollatorWithPadding,
    LlamaForSequenceClassification,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    default_data_collator,
)

from helpers import make_trainer, text_dataset
from hf_gradkit.data.tiny import tiny_llama
from pair_helpers import pairs


def arguments(activation_checkpointing: bool = False, **options) -> TrainingArguments:
    """Return arguments of transformers' own, which know no option of TRL's."""
    return TrainingArguments(**options)


def lora(task: str = "CAUSAL_LM") -> LoraConfig:
    return LoraConfig(r=4, target_modules="all-linear", task_type=task)


def classifier(tokenizer: Any, labels: int) -> LlamaForSequenceClassification:
    config = tiny_llama(tokenizer, hidden_size=32).config
    config.num_labels = labels
    torch.manual_seed(0)
    return LlamaForSequenceClassification(config)


def images_model() -> ViTForImageClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    return ViTForImageClassification(ViTConfig(**sizes, image_size=16, patch_size=8, num_labels=2))


def images() -> Dataset:
    torch.manual_seed(0)
    return Dataset.from_list([{"pixel_values": torch.randn(3, 16, 16).tolist(), "labels": i % 2} for i in range(64)])


def classified(tokenizer: Any, rows: int) -> Dataset:
    texts = text_dataset(rows)
    return texts.map(lambda row, i: {**tokenizer(row["text"]), "labels": i % 2}, with_indices=True).remove_columns(
        "text"
    )


def build(case: dict[str, Any], output_dir: Any, tokenizer: Any, sft_trainer: Any) -> Any:
    """Return the trainer of a case: the job that its kind says, or `sft_trainer` on texts."""
    rows, options, keywords = case.get("rows", 512), case["options"], {}
    trainer_class, config_class, data = sft_trainer, trl.SFTConfig, None
    if case["kind"] == "images":
        trainer_class, config_class, data = Trainer, arguments, images()
        keywords = {"model": images_model(), "data_collator": default_data_collator}
    elif case["kind"] == "classification":
        trainer_class, config_class, data = Trainer, arguments, classified(tokenizer, rows)
        keywords = {"model": classifier(tokenizer, 2), "data_collator": DataCollatorWithPadding(tokenizer)}
    elif case["kind"] == "dpo":
        trainer_class, config_class, data = trl.DPOTrainer, trl.DPOConfig, pairs(rows)
        keywords = {"peft_config": lora()}
    elif case["kind"] == "reward":
        trainer_class, config_class, data = trl.RewardTrainer, trl.RewardConfig, pairs(rows)
        keywords = {"model": classifier(tokenizer, 1)}
    else:
        data = text_dataset(rows)
        if case.get("lora"):
            keywords = {"peft_config": lora()}
    if case["kind"] == "stream":
        data = data.to_iterable_dataset()
    if case["kind"] == "split":
        data = data.shard(int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"]))  # as a script of the user's does
    return make_trainer(trainer_class, config_class, tokenizer, output_dir, data, keywords, **options)
