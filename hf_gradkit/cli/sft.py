"""`gradkit sft`: supervised fine-tuning with example weights.

Also a module for accelerate's own launcher: `accelerate launch -m hf_gradkit.cli.sft --config sft.yaml`.
"""

import sys

from ..trainers.config import SFTConfig
from ..trainers.sft_trainer import SFTTrainer
from .job import run, trainer_of


def main(argv: list[str] | None = None) -> int:
    """Fine-tune as the arguments say, and return the exit code: 0, or 2 for a mistake in the arguments or the data."""
    return run("sft", SFTConfig, trainer_of(SFTTrainer), argv)


if __name__ == "__main__":
    sys.exit(main())
