"""The text classifier as a quality: models that read little, and tokenizers that have no padding token."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification

from hf_gradkit.selection.quality import TextClassifier
from hf_gradkit.selection.work import Work
from pairs import pair_dataset, reward_model


@pytest.fixture
def work(tmp_path):
    return Work(tmp_path / "work", batch_size=3)


def by_hand(folder, texts, limit=None) -> np.ndarray:
    """Each prompt alone, unpadded. (n,)"""
    model, tokenizer = (kind.from_pretrained(folder) for kind in (AutoModelForSequenceClassification, AutoTokenizer))
    with torch.no_grad():
        return np.array(
            [model.eval()(torch.tensor([tokenizer(text)["input_ids"][:limit]])).logits.item() for text in texts]
        )


def test_a_prompt_longer_than_the_model_s_positions(tokenizer, work, tmp_path):
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, num_labels=1, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    rows = pair_dataset(8, "prompt").to_list()
    rows[5]["prompt"] = "the cat " * 100
    dataset = pair_dataset(8, "prompt").from_list(rows)
    values = TextClassifier(str(tmp_path / "bert")).of_dataset(dataset, work)
    assert values == pytest.approx(by_hand(tmp_path / "bert", dataset["prompt"], 64), abs=1e-5)


@pytest.mark.parametrize("configured", [False, True])
def test_a_tokenizer_without_a_padding_token(configured, tokenizer, work, tmp_path):
    options = {} if configured else {"pad_token_id": None}
    reward_model(tokenizer, **options).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    bare = AutoTokenizer.from_pretrained(tmp_path / "model")
    bare.pad_token = None
    bare.save_pretrained(tmp_path / "model")
    assert AutoTokenizer.from_pretrained(tmp_path / "model").pad_token is None
    dataset = pair_dataset(8, "prompt")
    values = TextClassifier(str(tmp_path / "model")).of_dataset(dataset, work)
    assert values == pytest.approx(by_hand(tmp_path / "model", dataset["prompt"]), abs=1e-5)
