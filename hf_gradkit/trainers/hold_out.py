"""The configuration's `hold_out_fraction`: rows that no training sees, so that what the model gives away is measured.

They are drawn before anything trains, from what would be trained on: after `data_filter`, whose choice would otherwise
be what tells the two sides apart.
"""

from dataclasses import dataclass, field
from typing import Any

from accelerate.logging import get_logger
from datasets import Dataset

from ..data.hold_out import FOLDER, HoldOut, HoldOutRecord, hold_out, written_sides
from ..scoring.processes import on_main

logger = get_logger(__name__)


@dataclass
class HoldOutArguments:
    """Fields that hold a random part of the training data out. Off by default.

    Args:
        hold_out_fraction (`float`, *optional*): share of the training rows, above 0 and below 1, that is set aside at
            random before training, for a privacy audit. Which ones is recorded in `<output_dir>/_hold_out`, with both
            sides' rows, where `gradkit audit` finds them; a run that goes on, or is started again there, has the same
            ones. Rows of the same content are on one side. Without other evaluation data they are that.
        hold_out_seed (`int`, defaults to `0`): seed of the draw, which does not depend on `seed`.
    """

    hold_out_fraction: float | None = field(
        default=None,
        metadata={"help": "Share of the training rows to set aside at random, for a privacy audit, such as 0.1."},
    )
    hold_out_seed: int = field(default=0, metadata={"help": "Seed of the draw of the rows that are held out."})

    def __post_init__(self):
        fraction, seed = self.hold_out_fraction, self.hold_out_seed
        number = isinstance(fraction, (int, float)) and not isinstance(fraction, bool)
        if fraction is not None and not (number and 0 < fraction < 1):
            raise ValueError(
                f"`hold_out_fraction` must be above 0 and below 1, but it is {fraction!r}. 0.1 holds out a tenth."
            )
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise ValueError(f"`hold_out_seed` must be a whole number, but it is {seed!r}.")
        super().__post_init__()


def hold_out_rows(args: Any, train: Any, evaluation: Any) -> tuple[Any, Any]:
    """Return the data to train on and to evaluate on, as the configuration's `hold_out_fraction` has it.

    The same rows are held out on every process and in every run with the same data, fraction and seed; the main
    process writes which beside the model.

    Args:
        args: the trainer's configuration; TRL's and transformers' own hold nothing out.
        train: all that would be trained on.
        evaluation: evaluation data, or None to evaluate on the rows that are held out.

    Raises:
        ValueError: if the data is streamed or too small, `output_dir` has the record of another hold-out, or the
            privacy audit would compare with other data.
    """
    fraction = getattr(args, "hold_out_fraction", None)
    if fraction is None or train is None:
        return train, evaluation
    if not isinstance(train, Dataset):
        raise ValueError(
            f"`hold_out_fraction` is {fraction}, but the training data is a {type(train).__name__}, and rows are "
            "held out before any is seen. Load it as a `datasets.Dataset`, without streaming, or leave the field out."
        )
    if evaluation is not None and "privacy_audit" in (getattr(args, "monitors", None) or []):
        raise ValueError(
            "`monitors` has 'privacy_audit', which compares the training data with the evaluation data, but that is "
            "not what `hold_out_fraction` holds out. Leave the evaluation data out: it is then the held-out rows."
        )
    ids = getattr(args, "example_id_column", None)
    split = hold_out(train, fraction, args.hold_out_seed, id_column=ids if ids in train.column_names else None)
    on_main(lambda: _write(split, args.output_dir))
    logger.info(
        f"{len(split.held_out)} of {len(train)} training rows are held out; which is in {args.output_dir}/{FOLDER}. "
        "After training: gradkit audit membership."
    )
    return split.train, split.held_out if evaluation is None else evaluation


def _write(split: HoldOut, output_dir: str) -> None:
    """Write the record and the rows, unless they are there."""
    found = HoldOutRecord.read(output_dir)
    if found is None:
        split.write(output_dir)
        return
    if not found.same_rows(split.record):
        raise ValueError(
            f"`output_dir` {output_dir!r} has the record of another hold-out ({int(found.held_out.sum())} of "
            f"{len(found.hashes)} rows, fraction {found.fraction:g}, seed {found.seed}) than `hold_out_fraction` "
            f"{split.record.fraction:g} draws from these {len(split.record.hashes)} rows. To go on with a run, give "
            f"the same data, fraction and seed; for a new one choose another folder, or remove {FOLDER!r} there."
        )
    if written_sides(output_dir) is None:
        split.write(output_dir)
