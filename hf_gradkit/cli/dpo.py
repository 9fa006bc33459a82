"""`gradkit dpo`: training on preference pairs - DPO, MADPO, RPO, beta-DPO.

Also a module for accelerate's own launcher: `accelerate launch -m hf_gradkit.cli.dpo --config dpo.yaml`.
"""

import sys
from typing import Any

from trl import get_peft_config, get_quantization_config

from ..trainers.config import DPOConfig
from ..trainers.dpo_trainer import DPOTrainer
from .job import run


def main(argv: list[str] | None = None) -> int:
    """Train as the arguments say, and return the exit code: 0, or 2 for a mistake in the arguments or the data."""
    return run("dpo", DPOConfig, build_trainer, argv)


def build_trainer(args: DPOConfig, model: Any, train: Any, evaluation: Any) -> DPOTrainer:
    """Return the trainer of a job, ready to train."""
    return DPOTrainer(
        model=model.model_name_or_path,
        args=args,
        train_dataset=train,
        eval_dataset=evaluation,
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
    )


if __name__ == "__main__":
    sys.exit(main())
