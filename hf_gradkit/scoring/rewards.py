"""Rewards: loads a reward model, tokenises pairs as it was trained on them, and scores one sequence a row."""

import inspect
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.logging import get_logger
from datasets import Dataset
from peft import PeftConfig, PeftModel
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from .fingerprints import find_model
from .pairs import content_columns, is_conversation, whole_texts
from .token_rows import TokenFile

logger = get_logger(__name__)

HEADS = ("score.", "classifier.")  # how the last layer of sequence classifiers is called


class RewardScorer:
    """Scores token sequences with a reward model: a sequence classifier with one label.

    Sequences are padded on the right, with the token by which the model finds the last real one.

    Args:
        model: in evaluation mode, on its device.
        pad_token_id: fills up the batch.
    """

    columns = ("reward",)

    def __init__(self, model: Any, pad_token_id: int):
        self.model = model
        self.pad_token_id = pad_token_id
        inner = model.get_base_model() if isinstance(model, PeftModel) else model
        self._keywords = {"use_cache": False} if "use_cache" in inspect.signature(inner.forward).parameters else {}

    def length(self, item: np.ndarray) -> int:
        """Return the number of tokens."""
        return len(item)

    @torch.inference_mode()
    def score(self, items: list[np.ndarray]) -> dict[str, np.ndarray]:
        """Return the reward of each sequence. (n,) float32"""
        lengths = np.array([len(ids) for ids in items])
        real = np.arange(lengths.max()) < lengths[:, None]  # (n, T)
        ids = np.full(real.shape, self.pad_token_id, dtype=np.int64)
        ids[real] = np.concatenate(items)
        logits = self.model(
            input_ids=self._on_device(ids), attention_mask=self._on_device(real.astype(np.int64)), **self._keywords
        ).logits  # (n, 1)
        return {"reward": logits[:, 0].float().cpu().numpy()}

    def _on_device(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.model.device, non_blocking=True)


def tokenize_pairs(dataset: Dataset, tokenizer: Any, max_length: int | None) -> TokenFile:
    """Return the tokens of chosen and rejected of each pair, as `trl.RewardTrainer` makes them. 2 n sequences

    TRL drops pairs that are too long; here they are cut at the left, since every pair needs a score and a causal
    reward model reads it off the last token.

    Raises:
        ValueError: for conversations, if the tokenizer has no chat template.
    """
    rows: Iterable[dict[str, Any]] = dataset.with_format(None).select_columns(content_columns(dataset))
    if is_conversation(next(iter(rows))) and tokenizer.chat_template is None:
        raise ValueError(
            "The pairs are conversations, but the tokenizer of the reward model has no chat template, so they cannot "
            "be written as it was trained on them. Give a tokenizer with the template, or pairs of plain text."
        )
    cut = 0

    def sequences() -> Iterator[list[int]]:
        nonlocal cut
        for chosen, rejected, options in whole_texts(rows, tokenizer.eos_token):
            pair = [_tokens(tokenizer, text, options) for text in (chosen, rejected)]
            if max_length is not None and max(map(len, pair)) > max_length:
                pair = [ids[-max_length:] for ids in pair]
                cut += 1
            yield from pair

    made = TokenFile(sequences())
    if cut:
        logger.warning(
            f"{cut} of {len(dataset)} pairs are longer than max_length ({max_length} tokens). They are cut at the "
            "left, so that the end, where the reward is read off, stays."
        )
    return made


def _tokens(tokenizer: Any, text: Any, options: dict[str, Any]) -> list[int]:
    if isinstance(text, str):
        return tokenizer(text=text)["input_ids"]
    tools = options["tools"]
    options = {**options, "tools": json.loads(tools) if isinstance(tools, str) else tools}
    return tokenizer.apply_chat_template(text, tokenize=True, return_dict=True, **options)["input_ids"]


def load_reward_model(name: str, dtype: Any = "auto", **options: Any) -> Any:
    """Load a reward model: a folder or a model of the Hub; a whole model, or a LoRA adapter with its head.

    Args:
        name: folder or name.
        dtype: of the weights; `"auto"` as they were saved.
        options: further arguments of `from_pretrained`.

    Raises:
        ValueError: if there is no such model, it has no reward head, or more than one label.
    """
    folder = find_model(name, options.pop("revision", None))
    options = {key: value for key, value in options.items() if value is not None}
    adapter = (folder / "adapter_config.json").exists()
    base, labels = folder, {}
    if adapter:
        config = PeftConfig.from_pretrained(str(folder))
        base, labels = find_model(config.base_model_name_or_path, config.revision), {"num_labels": 1}
        head = _head_of_adapter(folder)
        check_labels(head.shape[0] if head is not None else 1, name)
    model, report = AutoModelForSequenceClassification.from_pretrained(
        str(base), dtype=dtype, output_loading_info=True, **labels, **options
    )
    missing = [key for key in report["missing_keys"] if key.startswith(HEADS)]
    if missing and not (adapter and head is not None):
        raise ValueError(
            f"{name!r} has no reward head ({missing[0]} is not among its weights), so its rewards would be random. "
            + (
                'Train the adapter with task_type="SEQ_CLS" or modules_to_save=["score"], which saves the head.'
                if adapter
                else "Train a reward model on it first: gradkit reward."
            )
        )
    if not adapter:
        check_labels(model.config.num_labels, name)
        return model.eval()
    return PeftModel.from_pretrained(model, str(folder)).eval()


def check_labels(number: int, name: str) -> None:
    """Raise `ValueError` unless a classifier has one label."""
    if number != 1:
        raise ValueError(
            f"The model {name!r} has {number} labels. A reward model has one, the reward: use a sequence classifier "
            "trained with num_labels=1."
        )


def _head_of_adapter(folder: Path) -> Tensor | None:
    """Return the weight of the head that was saved with an adapter, or None."""
    path = folder / "adapter_model.safetensors"
    if path.exists():
        with safe_open(path, framework="pt") as file:
            heads = [key for key in file.keys() if _is_head(key)]  # noqa: SIM118
            return file.get_tensor(heads[0]) if heads else None
    saved = torch.load(folder / "adapter_model.bin", map_location="cpu", weights_only=True)
    return next((value for key, value in saved.items() if _is_head(key)), None)


def _is_head(key: str) -> bool:
    return "lora_" not in key and any(f".{head}" in key and key.endswith("weight") for head in HEADS)


def pad_token(model: Any, tokenizer: Any, name: str) -> int:
    """Return the padding token, and tell the model, which reads the reward off the last token that is another one.

    Raises:
        ValueError: if neither model nor tokenizer has one.
    """
    config = model.config.get_text_config()
    # Under an adapter the configuration is the base's, which trained with other tokens or none.
    known = [tokenizer.pad_token_id, tokenizer.eos_token_id]
    known.insert(1 if isinstance(model, PeftModel) else 0, config.pad_token_id)
    found = next((token for token in known if token is not None), None)
    if found is None:
        raise ValueError(
            f"Neither the reward model {name!r} nor its tokenizer has a padding token. Set `tokenizer.pad_token`."
        )
    config.pad_token_id = found
    return found
