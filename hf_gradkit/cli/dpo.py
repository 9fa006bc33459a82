"""`gradkit dpo`: training on preference pairs - DPO, MADPO, RPO, beta-DPO.

Also a module for accelerate's own launcher: `accelerate launch -m hf_gradkit.cli.dpo --config dpo.yaml`.
"""

import sys

from ..trainers.config import DPOConfig
from ..trainers.dpo_trainer import DPOTrainer
from .job import run, trainer_of


def main(argv: list[str] | None = None) -> int:
    """Train as the arguments say, and return the exit code: 0, or 2 for a mistake in the arguments or the data."""
    return run("dpo", DPOConfig, trainer_of(DPOTrainer), argv)


if __name__ == "__main__":
    sys.exit(main())
