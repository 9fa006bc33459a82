"""The demo's model and data: made here, saved like any other, and used by the tiny recipes too."""

import json
import os
from pathlib import Path

from ..data.synthetic import instruction_rows
from ..data.tiny import tiny_llama, train_tokenizer

TRAIN_ROWS, TEST_ROWS = 4000, 200


def prepare(folder: Path) -> None:
    """Write `model/` (a tiny Llama and its tokenizer), `data/train.jsonl` and `data/test.jsonl` to a folder.

    The training rows are of the three sources; the test rows are useful ones only.
    """
    train = instruction_rows(TRAIN_ROWS, seed=1)
    test = instruction_rows(TEST_ROWS, seed=2, shares={"useful": 1.0})
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), ("test", test)):
        temporary = folder / "data" / f"{name}.tmp"
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.replace(temporary, folder / "data" / f"{name}.jsonl")
    tokenizer = train_tokenizer((row["prompt"] + row["completion"] for row in train), vocab_size=512)
    model = tiny_llama(tokenizer, hidden_size=96, layers=3)
    tokenizer.save_pretrained(folder / "model")
    model.save_pretrained(folder / "model")
