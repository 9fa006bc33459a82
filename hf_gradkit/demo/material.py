"""The demo's models and data: made here, saved like any other, and used by the tiny recipes too."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..data.loading import load_split
from ..data.synthetic import instruction_rows
from ..data.synthetic_pairs import base_rows, edited_rows, preference_rows, prompts
from ..data.tiny import tiny_llama, train_tokenizer

TRAIN_ROWS, TEST_ROWS = 4000, 200
BASE_ROWS, PAIRS, TEST_PAIRS = 4000, 1280, 200


def prepare(folder: Path) -> Path:
    """Write `model/` (a tiny Llama and its tokenizer), `data/train.jsonl` and `data/test.jsonl` to a folder.

    The training rows are of the three sources; the test rows are useful ones only. Returns the folder.
    """
    train = instruction_rows(TRAIN_ROWS, seed=1)
    test = instruction_rows(TEST_ROWS, seed=2, shares={"useful": 1.0})
    _write_rows(folder, {"train": train, "test": test})
    _write_model(folder, (row["prompt"] + row["completion"] for row in train), hidden_size=96, layers=3)
    return folder


def prepare_pairs(folder: Path) -> Path:
    """Write the preference chapter's `model/` and `data/` to `preference/` of a folder, and return that.

    `sft.jsonl` has prompts and completions that know nothing of the reward, `train.jsonl` and `test.jsonl` have pairs
    that the true reward has labelled with noise, those of the test with other prompts.
    """
    return _write_pairs(folder / "preference", preference_rows)


def prepare_edits(folder: Path) -> Path:
    """Write the entanglement chapter's `model/` and `data/` to `entanglement/` of a folder, and return that.

    The files are those of `prepare_pairs`; the two answers of a pair differ in one word, which makes one truly worse.
    """
    return _write_pairs(folder / "entanglement", edited_rows)


def prepare_model(folder: Path, texts: Path) -> Path:
    """Write `model/`, a tiny Llama with a tokenizer of a data file's texts, to a folder, and return that.

    Raises:
        ValueError: if the file cannot be read or has no column of plain text.
    """
    dataset = load_split(str(texts), "train")
    columns = [name for name, feature in dataset.features.items() if getattr(feature, "dtype", None) == "string"]
    if not columns:
        raise ValueError(
            f"{str(texts)!r} has no column of plain text. Its columns: {', '.join(dataset.column_names)}."
        )
    lines = (row[name] for row in dataset for name in columns if row[name] is not None)
    _write_model(folder, lines, vocab_size=2048, hidden_size=64, layers=2)
    return folder


def _write_rows(folder: Path, splits: dict[str, list[dict[str, Any]]]) -> None:
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        temporary = folder / "data" / f"{name}.tmp"
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.replace(temporary, folder / "data" / f"{name}.jsonl")


def _write_pairs(folder: Path, draw: Callable[..., list[dict[str, Any]]]) -> Path:
    base = base_rows(BASE_ROWS, seed=1)
    splits = {"train": draw(PAIRS, seed=1), "test": draw(TEST_PAIRS, seed=1, split="test")}
    _write_rows(folder, {"sft": base, **splits})
    texts = [row["prompt"] + row["completion"] for row in base] + prompts("test") * 10  # every word is a token
    _write_model(folder, texts, hidden_size=64, layers=2)
    return folder


def _write_model(folder: Path, texts: Iterable[str], vocab_size: int = 512, **options: int) -> None:
    tokenizer = train_tokenizer(texts, vocab_size=vocab_size)
    model = tiny_llama(tokenizer, **options)
    tokenizer.save_pretrained(folder / "model")
    model.save_pretrained(folder / "model")
