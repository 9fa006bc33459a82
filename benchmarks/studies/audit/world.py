"""Models that know a kind of text and not the records that are audited, and those records."""

import gzip
import json
import random
from pathlib import Path

import trl
from datasets import Dataset

from hf_gradkit.data.synthetic_secrets import secret_rows
from hf_gradkit.data.tiny import tiny_llama, train_tokenizer

DATA = ("secrets", "gsm8k")
ROWS = 600  # audited: two thirds are trained on, one third is held out
BASE_ROWS = 4000
LENGTH = 256


def texts_of(data: str, seed: int, gsm8k: Path | None) -> tuple[list[str], list[str]]:
    """Return the texts that the base model learns, and those that are audited; none is in both."""
    if data == "secrets":
        base = secret_rows(BASE_ROWS, seed=10_000 + seed, purchases=8)
        return [row["text"] for row in base], [row["text"] for row in secret_rows(ROWS, seed=seed, purchases=8)]
    if gsm8k is None:
        raise ValueError("gsm8k needs --gsm8k, the file gsm8k_train.jsonl.gz.")
    with gzip.open(gsm8k, "rt", encoding="utf-8") as file:
        texts = ["{question}\n{answer}".format(**json.loads(line)) for line in file]
    random.Random(f"gsm8k-{seed}").shuffle(texts)
    return texts[ROWS : ROWS + BASE_ROWS], texts[:ROWS]


def make_world(data: str, seed: int, folder: Path, gsm8k: Path | None, steps: int) -> Path:
    """Write the records and the base model of a seed, unless they are there, and return the folder."""
    if (folder / "done").exists():
        return folder
    base, audited = texts_of(data, seed, gsm8k)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "records.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in audited))
    tokenizer = train_tokenizer(base[:2000], vocab_size=1024)
    model = tiny_llama(tokenizer, hidden_size=128, layers=4, max_length=512, seed=seed)
    trainer = trl.SFTTrainer(
        model=model,
        args=trl.SFTConfig(
            output_dir=str(folder / "training"), max_steps=steps, per_device_train_batch_size=16, learning_rate=2e-3,
            lr_scheduler_type="cosine", warmup_steps=20, max_length=LENGTH, use_cpu=True, bf16=False, seed=seed,
            activation_checkpointing=False, report_to="none", save_strategy="no", logging_steps=50, disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"text": base}),
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    (folder / "done").write_text("")
    return folder
