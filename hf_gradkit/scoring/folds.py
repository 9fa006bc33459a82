"""Cross-fitting: reward models trained on parts of the pairs, so that each pair has one that did not see it.

A folder of folds holds `folds.json`, written when all are trained, and the models in `fold-0`, `fold-1`, ...
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from .pairs import check_pair_columns, content_columns, prompt_of
from .work import write_json

FILE = "folds.json"


@dataclass(frozen=True)
class Folds:
    """How pairs were assigned to folds.

    Args:
        folds: how many there are; at least 2.
        seed: another seed is another assignment.
    """

    folds: int
    seed: int = 0

    def __post_init__(self):
        if not isinstance(self.folds, int) or isinstance(self.folds, bool) or self.folds < 2:
            raise ValueError(
                f"`folds` must be an integer of at least 2, but it is {self.folds!r}. With one fold, no reward model "
                "would be left that did not see the pairs; leave `folds` out to train one model on all of them."
            )

    def of_rows(self, dataset: Dataset) -> np.ndarray:
        """Return the fold of each pair. (n,) int64"""
        check_pair_columns(dataset)
        columns = [name for name in content_columns(dataset) if name in ("prompt", "chosen", "rejected")]
        rows = dataset.with_format(None).select_columns(columns)
        return np.array([fold_of(prompt_of(row), self.folds, self.seed) for row in rows], dtype=np.int64)

    def folder(self, top: str | Path, fold: int) -> Path:
        """Return where the model is that was trained without a fold."""
        return Path(top) / f"fold-{fold}"

    def write(self, top: str | Path) -> None:
        """Say in a folder that the models of all folds are there."""
        write_json(Path(top) / FILE, {"format": 1, **asdict(self)})

    @classmethod
    def read(cls, top: str | Path) -> "Folds | None":
        """Return the folds whose models a folder holds, or None if it is no folder of folds.

        Raises:
            ValueError: if the training of the folds did not come to its end, or a model is gone.
        """
        top = Path(top).expanduser()
        if not (top / FILE).exists():
            if (top / "fold-0").is_dir():
                raise ValueError(
                    f"{str(top)!r} holds reward models of folds, but no {FILE}: their training did not come to its "
                    "end. Run the command again, with resume_from_checkpoint true, and then score."
                )
            return None
        content = json.loads((top / FILE).read_text())
        folds = cls(content["folds"], content["seed"])
        for fold in range(folds.folds):
            if not folds.folder(top, fold).is_dir():
                raise ValueError(
                    f"{str(top / FILE)!r} names {folds.folds} folds, but the model of fold {fold} is not there."
                )
        return folds


def fold_of(prompt: str | list[dict[str, Any]], folds: int, seed: int = 0) -> int:
    """Return the fold of a prompt: the same for all pairs that share it, in every run, whatever the rows' order.

    Args:
        prompt: text or messages.
        folds: how many there are.
        seed: another seed is another assignment.
    """
    if not isinstance(prompt, str):  # formats differ in what a message that lacks a key looks like
        prompt = [{key: value for key, value in message.items() if value is not None} for message in prompt]
    text = json.dumps([seed, prompt], sort_keys=True, default=str)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") % folds
