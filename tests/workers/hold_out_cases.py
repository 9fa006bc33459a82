"""Run in each of two processes: train on what a hold-out leaves, go on from a checkpoint, or be refused."""

import json
import os
import sys
from pathlib import Path

from datasets import load_from_disk

import hf_gradkit
from helpers import DEFAULTS
from hf_gradkit.data.tiny import tiny_llama, train_tokenizer
from launch import REPORT, report_world


def run(case: dict, data, tokenizer) -> tuple[dict, object]:
    """Train as a case says, and return what this process held out and trained on."""
    options = {"example_log": True, "example_id_column": "uid", **DEFAULTS, **case["options"]}
    trainer = hf_gradkit.SFTTrainer(
        model=tiny_llama(tokenizer, hidden_size=32),
        args=hf_gradkit.SFTConfig(case["folder"], **options),
        train_dataset=data,
        processing_class=tokenizer,
    )
    trainer.train(resume_from_checkpoint=case.get("resume"))
    return {"rows": len(trainer.train_dataset), "evaluated": len(trainer.eval_dataset)}, trainer


def main() -> None:
    path, folder = Path(sys.argv[1]), Path(sys.argv[2])
    data = load_from_disk(str(folder / "data"))
    tokenizer = train_tokenizer(list(data["text"]), vocab_size=300)
    rank, trainer = int(os.environ["RANK"]), None
    for case in json.loads(path.read_text()):
        try:
            found, trainer = run(case, data, tokenizer)
        except ValueError as error:
            found = {"error": str(error)}
        (folder / f"{case['name']}.rank{rank}.json").write_text(json.dumps(found))
    if REPORT in os.environ:
        report_world(trainer)


if __name__ == "__main__":
    main()
