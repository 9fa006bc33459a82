"""Every version check, and every private name of transformers and TRL that is relied on. Nowhere else."""

import importlib.metadata
from typing import Any

# The releases that the test suite ran against; pyproject.toml caps them.
TESTED = {"transformers": "5.23", "trl": "1.16"}

# Methods of transformers' Trainer that ours override or call, and why. tests/test_seams.py checks that each exists in
# the parent and that each override really runs in a training step.
TRAINER_SEAMS = {
    "_set_signature_columns_if_needed": "columns that accompany an example stay in the data set",
    "_get_dataloader": "says whether a loader is for training, so that only training batches carry example columns",
    "_prepare_for_training": "runs once per `train()`, with the checkpoint to resume from",
    "_run_epoch": "is told the epoch's number",
    "_save_optimizer_and_scheduler": "runs on all ranks while a checkpoint's training state is written",
    "get_batch_samples": "has all micro-batches of an optimizer step at hand",
    "compute_loss": "has the model's outputs at hand",
    "log": "adds figures to the logs",
    "train": "ends with the example log and the trainer's state written",
}
# Of transformers' Trainer in ours for plain transformers, besides.
PLAIN_SEAMS = {
    "training_step": "is where a loss is divided by the accumulation steps, or not",
    "prediction_step": "evaluates, also a loss of the user's own",
}
# Of TRL's SFTTrainer besides.
SFT_SEAMS = {"_prepare_dataset": "packs the data set, and drops the columns doing so"}


def shifts_labels(trainer: Any) -> bool:
    """Return whether position t of the model's logits is scored against label t + 1, as in causal language models."""
    return trainer._loss_shifts_labels


def has_vision_data(trainer: Any) -> bool:
    """Return whether TRL's trainer found images in the data set."""
    return trainer._is_vision_dataset


def versions(names: tuple[str, ...]) -> dict[str, str | None]:
    """Return the installed version of each distribution, None where it is missing."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def untested_versions() -> list[str]:
    """Return a sentence for each library whose installed release is not the one that was tested."""
    return [
        f"{name} {version} is installed; this release of hf-gradkit was tested with {name} {TESTED[name]}."
        for name, version in versions(tuple(TESTED)).items()
        if version is not None and not version.startswith(TESTED[name] + ".")
    ]
