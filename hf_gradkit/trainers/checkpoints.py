"""Which checkpoints are whole: what one consists of is written down, and looked at before a run goes on from it.

    checkpoint-40/...                     what transformers, DeepSpeed and we write, each process its part
    checkpoint-40/checkpoint_files.json   then: those files with their sizes, and who wrote them
    checkpoint-40/trainer_state.json      last, by transformers

A run that dies in the middle leaves a folder without the last two, a file that is lost or cut short later has another
size. With `save_only_model` there is nothing to go on from, which the list says from the start.
"""

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate.utils import DistributedType
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .._backends import REPLICATED
from ..reporting.run_info import FILE as RUN_INFO
from ..scoring.processes import on_main

logger = logging.getLogger(__name__)

FILES = "checkpoint_files.json"
STATE = "trainer_state.json"
STATE_FILE = "example_weighting.pt"  # what example weighting needs to go on; no other trainer writes one
STARTED = "run_started"  # when the run began that a checkpoint is of, in seconds: tells it from another in its folder
MODEL_ONLY = "model_only"


class CheckpointError(OSError):
    """A checkpoint could not be written."""


def folder_of(output_dir: str, step: int) -> Path:
    """Return where the checkpoint of a step goes."""
    return Path(output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def write_file_list(folder: Path, facts: dict[str, Any]) -> None:
    """Write down what a checkpoint consists of, once all processes have written their part.

    Args:
        folder: the checkpoint.
        facts: who writes it; see `world_facts`.
    """
    files = {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (FILES, STATE)
    }
    temporary = folder / f"{FILES}.tmp"
    temporary.write_text(json.dumps({"format": 1, **facts, "files": files}, indent=2) + "\n")
    os.replace(temporary, folder / FILES)


def defect_of(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint, as the end of a sentence, or None for a whole one.

    Of a checkpoint that another trainer wrote no more is asked than that its writing came to its end.
    """
    try:
        json.loads((folder / STATE).read_text())
    except OSError:
        return f"writing it did not come to its end (there is no {STATE})"
    except ValueError:
        return f"its {STATE} is cut short"
    try:
        listed = read_facts(folder)
    except ValueError:
        return f"its {FILES} is cut short"
    if listed is None and (folder / STATE_FILE).exists():
        return f"its {FILES} is missing, though it has {STATE_FILE}"
    if listed and listed.get(MODEL_ONLY):
        return "it has the model alone (save_only_model), without the state of optimizer, schedule and data"
    for name, size in (listed["files"] if listed else {}).items():
        path = folder / name
        if not path.is_file():
            return f"its file {name} is missing"
        if path.stat().st_size != size:
            return f"its file {name} has {path.stat().st_size} bytes and not {size}"
    return None


def read_facts(folder: str | os.PathLike) -> dict[str, Any] | None:
    """Return what a checkpoint says of itself, or None for one of another trainer.

    Raises:
        ValueError: if what it says was not written to its end.
    """
    path = Path(folder) / FILES
    if not path.exists():
        return None
    facts = json.loads(path.read_text())
    if not isinstance(facts, dict) or not isinstance(facts.get("files"), dict):
        raise ValueError(f"{path} does not list the files of a checkpoint.")
    return facts


def checkpoints(output_dir: str | os.PathLike) -> Iterator[Path]:
    """Yield the checkpoints of a run, whole or not, the latest first."""
    found = Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    steps = {path: path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-") for path in found if path.is_dir()}
    yield from sorted((path for path, step in steps.items() if step.isdigit()), key=lambda path: -int(steps[path]))


def last_whole_checkpoint(
    output_dir: str | os.PathLike, before: str | os.PathLike | None = None
) -> tuple[str | None, list[str]]:
    """Return the latest checkpoint that is whole, or None, and a sentence for each later one that is not.

    Where several runs wrote into the folder, one after the other, only those of the last are looked at.

    Args:
        output_dir: the run's folder.
        before: a checkpoint; those of its step and later ones are not looked at.
    """
    passed_over = []
    last_run = last_start(output_dir)
    for folder in checkpoints(output_dir):
        if before is not None and int(folder.name.rpartition("-")[2]) >= step_of(before):
            continue
        defect = defect_of(folder)
        if defect is not None:
            passed_over.append(f"{folder} is not whole: {defect}.")
        elif started(folder) not in (None, last_run):
            passed_over.append(f"{folder} is of an earlier run than the last one here: name it to go on from it.")
        else:
            return str(folder), passed_over
    return None, passed_over


def started(checkpoint: str | os.PathLike) -> float | None:
    """Return when the run began that a checkpoint is of, or None where it does not say."""
    try:
        return (read_facts(checkpoint) or {}).get(STARTED)
    except (OSError, ValueError):
        return None


def last_start(output_dir: str | os.PathLike) -> float | None:
    """Return when the last run of a folder began, by what it says of itself and by its checkpoints, or None."""
    try:
        of_run = json.loads((Path(output_dir) / RUN_INFO).read_text()).get(STARTED)
    except (OSError, ValueError):
        of_run = None
    known = [of_run, *(started(folder) for folder in checkpoints(output_dir))]
    return max((moment for moment in known if moment is not None), default=None)


def step_of(checkpoint: str | os.PathLike) -> int:
    """Return the optimizer step at which a whole checkpoint was written."""
    return json.loads((Path(checkpoint) / STATE).read_text())["global_step"]


def find_last_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """Return the latest whole checkpoint, or None, and warn of later ones that had to be passed over."""
    found, passed_over = last_whole_checkpoint(output_dir)
    if passed_over:
        instead = f"The run goes on from {found}" if found else "No other one is there"
        logger.warning(f"{' '.join(passed_over)} {instead}.")
    return found


def find_checkpoint(resume: str | bool | None, output_dir: str) -> str | None:
    """Return the folder of the checkpoint to go on from, or None to start anew; the same on all processes.

    Args:
        resume: a folder; true for the last checkpoint in `output_dir` that is whole; or "auto" for that or, where
            there is none, a new run: for a command that is started again and again.
        output_dir: where the run writes its checkpoints.

    Raises:
        ValueError: if there is none, or the one that was named is not whole.
    """
    word = str(resume or "").lower()
    if word in ("", "false", "no", "none"):
        return None
    if word not in ("true", "yes", "auto"):
        if not Path(resume).is_dir():
            raise ValueError(f"`resume_from_checkpoint` is {resume!r}, but there is no such folder.")
        on_main(lambda: check_whole(str(resume)))
        return str(resume)
    last = on_main(lambda: find_last_checkpoint(output_dir))
    if last is None and word != "auto":
        raise ValueError(
            f"`resume_from_checkpoint` is true, but `output_dir` {output_dir!r} holds no checkpoint to go on from. "
            "Correct `output_dir`, or leave `resume_from_checkpoint` out to start anew ('auto' does that by itself)."
        )
    return last


def check_whole(folder: str) -> None:
    """Raise `ValueError` for a checkpoint that is not whole, naming the one before it that is."""
    defect = defect_of(Path(folder))
    if defect is None:
        return
    instead, _ = last_whole_checkpoint(Path(folder).parent)
    raise ValueError(
        f"The checkpoint {folder} is not whole: {defect}. "
        + (
            f"The latest whole one is {instead}: name it, or set resume_from_checkpoint=True."
            if instead
            else "No other one is there: leave out `resume_from_checkpoint` to start anew."
        )
    )


# ---- who wrote it -------------------------------------------------------------------------------------------------


def world_facts(trainer: Any) -> dict[str, Any]:
    """Return what a resumed run must have in common with the one that writes a checkpoint."""
    args, accelerator, dataset = trainer.args, trainer.accelerator, trainer.train_dataset
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * accelerator.num_processes
    return {
        "distributed_type": accelerator.distributed_type.value,
        "zero_stage": zero_stage(accelerator),
        "processes": accelerator.num_processes,
        "examples_per_step": None if args.auto_find_batch_size else per_step,
        "rows": len(dataset) if hasattr(dataset, "__len__") else None,
    }


def zero_stage(accelerator: Any) -> int | None:
    """Return DeepSpeed's stage, or None without it."""
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return None
    return accelerator.state.deepspeed_plugin.zero_stage


def check_same_world(checkpoint: str, trainer: Any) -> None:
    """Raise `ValueError` for a checkpoint that this run cannot continue exactly.

    Without sharding any number of processes goes on from a checkpoint of another number; with it, that is not tested
    (FSDP2) or impossible (DeepSpeed). What FSDP2 wrote, transformers reads under FSDP2 only.
    A step must hold as many examples as before, and the data as many rows, unless
    `ignore_data_skip` says that the data begin anew.
    """
    written = read_facts(checkpoint)
    if written is None:
        return
    now = world_facts(trainer)
    replicated = {kind.value for kind in REPLICATED}
    same = all(written[key] == now[key] for key in ("distributed_type", "zero_stage", "processes"))
    if not same and not {written["distributed_type"], now["distributed_type"]} <= replicated:
        raise ValueError(
            f"The checkpoint {checkpoint} was written by {_described(written)}, and {_described(now)} "
            f"{_hindrance(written, now)}. Resume with the processes and the --accelerate_config it was written with, "
            f"or begin a new run from its weights with model_name_or_path={checkpoint}."
        )
    if trainer.args.ignore_data_skip:
        return
    if None not in (written["rows"], now["rows"]) and written["rows"] != now["rows"]:
        raise ValueError(
            f"The training data has {now['rows']} rows, and had {written['rows']} when {checkpoint} was written: "
            "other examples would be left out or repeated. Was the file cut short or changed? Resume with the same "
            f"data, set ignore_data_skip=True to begin the data anew, or begin a new run with model_name_or_path="
            f"{checkpoint}."
        )
    if None not in (written["examples_per_step"], now["examples_per_step"]) and (
        written["examples_per_step"] != now["examples_per_step"]
    ):
        raise ValueError(
            f"An optimizer step has {now['examples_per_step']} examples, and had {written['examples_per_step']} when "
            f"{checkpoint} was written, so the run would not go on at the same place of the data. Set "
            "`per_device_train_batch_size` or `gradient_accumulation_steps` such that their product with the number "
            f"of processes is {written['examples_per_step']}, or ignore_data_skip=True to begin the data anew."
        )


def _hindrance(written: dict[str, Any], now: dict[str, Any]) -> str:
    if written["distributed_type"] != "FSDP":
        return "cannot read its optimizer's state"
    if now["distributed_type"] == "FSDP":
        return "have not been tested to read its optimizer's state"
    return "cannot read its files: transformers reads FSDP2's weights and optimizer under FSDP2 only"


def _described(facts: dict[str, Any]) -> str:
    number = facts["processes"]
    name = {"DEEPSPEED": f"DeepSpeed ZeRO-{facts['zero_stage']}", "FSDP": "FSDP2"}.get(facts["distributed_type"])
    processes = f"{number} process{'es' if number > 1 else ''}"
    return f"{processes} under {name}" if name else processes
