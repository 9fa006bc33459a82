"""Trains a tiny model that pushes itself, once for each `hub_strategy`, and once where a push fails in the middle."""

import json
import logging
import sys
from pathlib import Path

from helpers import dataset_of, make_trainer
from hf_gradkit import SFTConfig, SFTTrainer
from hf_gradkit.data.tiny import train_tokenizer


def main(folder: Path, strategies: list[str]) -> None:
    from helpers import make_rows

    tokenizer = train_tokenizer([row["text"] for row in make_rows(64)], vocab_size=300)
    said = {}
    for strategy in strategies:
        handler = Kept()
        logging.getLogger("hf_gradkit").addHandler(handler)
        options = {"push_to_hub": True, "hub_model_id": f"someone/{strategy}", "hub_strategy": strategy}
        options |= {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
        options |= {"hub_always_push": True, "weighting": "linupper", "max_steps": 4}
        data = dataset_of(24, "text")
        trainer = make_trainer(
            SFTTrainer, SFTConfig, tokenizer, folder / strategy, data, {"eval_dataset": data}, **options
        )
        trainer.train()
        trainer.push_to_hub(dataset_name="someone/rows")
        logging.getLogger("hf_gradkit").removeHandler(handler)
        said[strategy] = {"warnings": handler.messages, "eval_loss": trainer.state.log_history[-2].get("eval_loss")}
    (folder / "said.json").write_text(json.dumps(said))


class Kept(logging.Handler):
    """Keeps what is logged."""

    def __init__(self):
        super().__init__()
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
