"""`gradkit reward`: train a reward model on preference pairs, or one for each fold of them.

Also a module for accelerate's own launcher: `accelerate launch -m hf_gradkit.cli.reward --config reward.yaml`.
"""

import copy
import json
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from ..scoring.fingerprints import hash_rows
from ..scoring.folds import FILE, Folds
from ..scoring.pairs import content_columns
from ..scoring.processes import on_main
from ..scoring.work import write_json
from ..trainers.checkpoints import find_checkpoint
from ..trainers.config import RewardConfig
from ..trainers.reward_trainer import RewardTrainer
from .job import Job, end_run, release, run, save, train_and_save, trainer_of

PLAN, STATE = "fold_plan.json", "trainer_state.json"


@dataclass
class FoldArguments:
    """Cross-fitting.

    Args:
        folds (`int`, *optional*): train this many reward models, each without its part of the pairs, into `fold-0`,
            `fold-1`, ... of `output_dir`; scoring then uses for each pair the one that did not see it.
        fold_seed (`int`, *optional*, defaults to `0`): another seed is another assignment of pairs to parts.
    """

    folds: int | None = field(
        default=None,
        metadata={
            "help": "Train this many reward models, each without its part of the pairs; scoring then uses for each "
            "pair the one that did not see it. Pairs that share a prompt are in the same part."
        },
    )
    fold_seed: int = field(default=0, metadata={"help": "Another seed is another assignment of pairs to folds."})

    def __post_init__(self):
        if self.folds is not None:
            Folds(self.folds, self.fold_seed)


def main(argv: list[str] | None = None) -> int:
    """Train as the arguments say, and return the exit code: 0, or 2 for a mistake in the arguments or the data."""
    return run("reward", RewardConfig, build_trainer, argv, options_class=FoldArguments, work=_train)


def build_trainer(args: RewardConfig, model: Any, train: Any, evaluation: Any) -> RewardTrainer:
    """Return the trainer of a job, ready to train."""
    if model.use_peft and model.lora_task_type == "CAUSAL_LM":  # TRL's default, which would not train or save the head
        model.lora_task_type = "SEQ_CLS"
    return trainer_of(RewardTrainer)(args, model, train, evaluation)


def _train(job: Job) -> None:
    if job.options.folds is not None:
        _train_folds(job, Folds(job.options.folds, job.options.fold_seed))
        return
    if (Path(job.args.output_dir) / FILE).exists():
        raise ValueError(
            f"`output_dir` {job.args.output_dir!r} holds the reward models of folds, which scoring would use instead "
            "of a single one beside them. Choose another folder, or set `folds`."
        )
    trainer = train_and_save(job)
    trainer.accelerator.print(f"Score pairs with it: {_score_command(job.args.output_dir)}")
    end_run(trainer)


def _train_folds(job: Job, folds: Folds) -> None:
    """Train a model without each fold in turn, and say in the end that all are there."""
    _check_folds(job)
    top = Path(job.args.output_dir)
    assigned = folds.of_rows(job.train)
    _check_sizes(np.bincount(assigned, minlength=folds.folds))
    resumes = job.args.resume_from_checkpoint not in (None, False, "false", "False", "no")
    on_main(lambda: _begin(top, folds, hash_rows(job.train, content_columns(job.train)), resumes))
    trainer = None
    for fold in range(folds.folds):
        args = copy.copy(job.args)
        args.output_dir = str(folds.folder(top, fold))
        if resumes and (Path(args.output_dir) / STATE).exists():  # written after the model
            continue
        if trainer is not None:
            release(trainer)
        kept = job.train.select(np.flatnonzero(assigned != fold))
        checkpoint = find_checkpoint("auto", args.output_dir) if resumes else None
        trainer = job.train_one(args, kept, checkpoint)
        save(trainer)
    on_main(lambda: folds.write(top))
    if trainer is None:
        on_main(lambda: print(f"All {folds.folds} folds in {top} were trained already."))
        return
    trainer.accelerator.print(
        f"{folds.folds} reward models are in {top}. Score each pair by the one that did not see it:\n"
        f"{_score_command(top)}"
    )
    end_run(trainer)


def _check_sizes(sizes: np.ndarray) -> None:
    for fold, size in enumerate(sizes):
        if not 0 < size < sizes.sum():
            raise ValueError(
                f"`folds` is {len(sizes)}, but fold {fold} would hold {size} of {sizes.sum()} pairs. Pairs that share "
                "a prompt share a fold, and there are too few prompts: set fewer folds."
            )


def _begin(top: Path, folds: Folds, data: str, resumes: bool) -> None:
    """Note what is trained, such that a resumed run keeps no model that saw other pairs; on the main process."""
    plan = {"folds": folds.folds, "seed": folds.seed, "data": data}
    top.mkdir(parents=True, exist_ok=True)
    if resumes and (top / PLAN).exists() and json.loads((top / PLAN).read_text()) != plan:
        raise ValueError(
            f"`resume_from_checkpoint` is set, but {str(top)!r} holds reward models of other folds, of another "
            "`fold_seed` or other pairs. Choose another `output_dir`, or leave it out to train all of them anew."
        )
    (top / FILE).unlink(missing_ok=True)
    if not resumes:
        for state in top.glob(f"fold-*/{STATE}"):
            state.unlink()
    write_json(top / PLAN, plan)


def _score_command(folder: str | Path) -> str:
    name = shlex.quote(str(folder))
    return f"gradkit score --by reward --model_name_or_path {name} --dataset_name ... --output_dir ..."


def _check_folds(job: Job) -> None:
    if not isinstance(job.train, Dataset):
        raise ValueError("`folds` is set, but streamed data cannot be divided. Set dataset_streaming false.")
    if job.args.push_to_hub:
        raise ValueError("`folds` and `push_to_hub` are both set, but a repository of the Hub holds one model.")
    if isinstance(job.args.resume_from_checkpoint, str) and Path(job.args.resume_from_checkpoint).is_dir():
        raise ValueError(
            f"`resume_from_checkpoint` is {job.args.resume_from_checkpoint!r}, but with `folds` each model has "
            "checkpoints of its own. Set it to true: what is trained stays, the rest goes on from its last checkpoint."
        )


if __name__ == "__main__":
    sys.exit(main())
