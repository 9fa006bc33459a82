"""What every training job does around its trainer: arguments, data, checkpoint, the last words."""

import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trl

from .._backends import prepare_cpu_backends
from ..data.loading import load_mixture, load_split
from ..publishing.files import WEIGHTS
from ..scoring.processes import on_main
from ..trainers.checkpoints import find_checkpoint
from .arguments import parse_job
from .checks import check_content_columns, check_model_folder, not_loaded
from .data_arguments import ScriptArguments
from .errors import INTERRUPTED, USER_ERRORS, report
from .origin import origin_of_job


@dataclass
class Job:
    """What a training job was asked for, with its data loaded.

    Attributes:
        script: arguments about the data.
        args: the trainer's arguments.
        model: the model's arguments.
        options: arguments of the job's own, or None.
        train: the training data.
        evaluation: the evaluation data, or None.
        build_trainer: makes the trainer from the trainer's arguments, the model's arguments, and the data.
        origin: what started it, for the page of the model.
        training: whether a trainer was built, from when on one rank may fail alone.
    """

    script: ScriptArguments
    args: Any
    model: Any
    options: Any
    train: Any
    evaluation: Any
    build_trainer: Callable[..., Any]
    origin: dict[str, Any]
    training: bool = False

    def train_one(self, args: Any, train: Any, checkpoint: str | None) -> Any:
        """Build a trainer, train it from a checkpoint (or None), and return it."""
        try:
            trainer = self.build_trainer(args, self.model, train, self.evaluation)
        except OSError as error:
            raise not_loaded(self.model.model_name_or_path, error) from error
        trainer.run_origin = self.origin
        self.training = True
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer


def run(
    job: str,
    config_class: type,
    build_trainer: Callable[..., Any],
    argv: list[str] | None,
    options_class: type | None = None,
    work: Callable[[Job], None] | None = None,
) -> int:
    """Run a training job from its arguments to its last words, and return the exit code.

    Args:
        job: its name on the command line.
        config_class: of the trainer's arguments.
        build_trainer: makes the trainer from the trainer's arguments, the model's arguments, the training data and
            the evaluation data (or None).
        argv: the arguments; those of the process when None.
        options_class: a dataclass of further arguments.
        work: does the training and ends the run; one model is trained and saved when None.
    """
    current = None
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for methods of the user's own; `python -m` has it, a console script does not
    prepare_cpu_backends()
    try:
        types = (ScriptArguments, config_class, trl.ModelConfig, trl.DatasetMixtureConfig)
        types += () if options_class is None else (options_class,)
        argv = sys.argv[1:] if argv is None else argv
        script, args, model, mixture, *options = parse_job(job, types, argv)
        _check(args, model)
        train, evaluation = load_data(script, args, mixture)
        check_content_columns(job, train, args, "the training data")
        check_content_columns(job, evaluation, args, "the evaluation data")
        args.model_init_kwargs = model_init_kwargs(args, model)
        data, own = (train, evaluation), options[0] if options else None
        current = Job(script, args, model, own, *data, build_trainer, origin_of_job(job, argv, script, mixture))
        (work or _train_and_end)(current)
    except USER_ERRORS as error:
        return report(error, every_rank=current is not None and current.training)
    except KeyboardInterrupt:  # the trainer has said what is left
        return INTERRUPTED
    return 0


def trainer_of(trainer_class: type) -> Callable[..., Any]:
    """Return what builds a job's trainer of this class, from its arguments and data."""

    def build(args: Any, model: trl.ModelConfig, train: Any, evaluation: Any) -> Any:
        return trainer_class(
            model=model.model_name_or_path,
            args=args,
            train_dataset=train,
            eval_dataset=evaluation,
            quantization_config=trl.get_quantization_config(model),
            peft_config=trl.get_peft_config(model),
        )

    return build


def _train_and_end(job: Job) -> None:
    end_run(train_and_save(job))


def train_and_save(job: Job) -> Any:
    """Train one model, save it, say where everything is, and return the trainer, whose run is to be ended."""
    checkpoint = find_checkpoint(job.args.resume_from_checkpoint, job.args.output_dir)
    trainer = job.train_one(job.args, job.train, checkpoint)
    save(trainer)
    trainer.accelerator.print(f"See what happened: gradkit report {shlex.quote(str(job.args.output_dir))}")
    return trainer


def _check(args: Any, model: Any) -> None:
    if model.model_name_or_path is None:
        raise ValueError("`model_name_or_path` is not set. Name a model of the Hub or a folder with one.")
    check_model_folder(model.model_name_or_path)
    spread = "device_map" in (args.model_init_kwargs or {})
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 and args.n_gpu > 1 and not spread:
        raise ValueError(
            f"{args.n_gpu} GPUs are visible, but only one process was started. Add --accelerate_config multi_gpu to "
            "train on all of them, or set CUDA_VISIBLE_DEVICES=0 to train on one."
        )


def load_data(script: ScriptArguments, args: Any, mixture: Any) -> tuple[Any, Any]:
    """Return the training data and, if the run evaluates, the evaluation data, with columns renamed.

    Raises:
        ValueError: if the arguments name no data or contradict each other, or a file, split or column is missing.
    """
    evaluates = args.eval_strategy != "no"
    if mixture.datasets and script.dataset_name:
        raise ValueError(
            f"Both `datasets` and `dataset_name` ({script.dataset_name!r}) are set. Keep one of them: `datasets` for "
            "a mixture, `dataset_name` for one data set."
        )
    if not mixture.datasets and not script.dataset_name:
        raise ValueError("No data is named. Set `dataset_name` to a file or a data set of the Hub, or `datasets`.")
    if script.eval_dataset_name and not evaluates:
        raise ValueError(
            f"`eval_dataset_name` is {script.eval_dataset_name!r}, but the run never evaluates. Set `eval_strategy` "
            "to 'steps' or 'epoch', or leave it out."
        )
    splits = load_mixture(mixture) if mixture.datasets else None
    train = _split_of(splits, script, script.dataset_train_split)
    evaluation = _evaluation_data(splits, script, args.hold_out_fraction is not None) if evaluates else None
    train = script.renamed(train, "the training data")
    return train, None if evaluation is None else script.renamed(evaluation, "the evaluation data")


def _split_of(splits: dict[str, Any] | None, script: ScriptArguments, split: str) -> Any:
    if splits is None:
        return load_split(script.dataset_name, split, script.dataset_config, script.dataset_streaming)
    if split not in splits:
        raise ValueError(
            f"The mixture in `datasets` has no split {split!r}; it has {', '.join(splits)}. Set `test_split_size` to "
            "split off a test set."
        )
    return splits[split]


def _evaluation_data(splits: dict[str, Any] | None, script: ScriptArguments, holds_out: bool) -> Any:
    """Return the evaluation data, or None where there is none and the trainer holds rows out."""
    split = script.dataset_test_split
    if script.eval_dataset_name is not None:
        file_split = split.partition("[")[0]
        return load_split(
            script.eval_dataset_name, split, script.dataset_config, script.dataset_streaming, file_split=file_split
        )
    try:
        return _split_of(splits, script, split)
    except ValueError as error:
        if holds_out and split == "test":  # the default, which nobody asked for
            return None
        raise ValueError(
            f"`eval_strategy` is set, but there is nothing to evaluate on: {error} Name the data "
            "with `eval_dataset_name`, the split with `dataset_test_split`, or set eval_strategy 'no'."
        ) from error


def model_init_kwargs(args: Any, model: Any) -> dict[str, Any]:
    """Return what the model is loaded with; `model_init_kwargs` of the trainer's arguments wins."""
    return {
        "revision": model.model_revision,
        "trust_remote_code": args.trust_remote_code,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(args.model_init_kwargs or {}),
    }


def save(trainer: Any) -> None:
    """Save the model and the trainer's state, push if asked, and say where they are."""
    folder = trainer.args.output_dir
    trainer.save_model(folder)
    trainer.save_state()
    say = trainer.accelerator.print
    logs = f"The logs are in {Path(folder) / 'trainer_state.json'}."
    if not on_main(lambda: any(file for pattern in WEIGHTS for file in Path(folder).glob(pattern))):
        command = shlex.join(["python", str(Path(folder) / "zero_to_fp32.py"), folder, folder, "--safe_serialization"])
        say(
            f"The model's weights are in {folder} in parts, as zero3_save_16bit_model false has DeepSpeed write them. "
            f"Put them together with: {command}. {logs}"
        )
        return
    say(f"The model is in {folder}. {logs}")
    if trainer.args.push_to_hub:
        trainer.push_to_hub()
        say(f"The model was pushed to the Hub as {trainer.hub_model_id}.")


def end_run(trainer: Any) -> None:
    """Finish the trackers and the process group, in an order that cannot hang.

    DDP's reducer holds the process group. Where it is the last to do so, the group is destroyed with Python's lock
    held, and waits for gloo's thread, which may be waiting for that lock (seen with torch 2.13): so DDP goes first.
    """
    release(trainer)
    trainer.end()


def release(trainer: Any) -> None:
    """Let go of DDP and of what the trainer's accelerator holds, so that the process group can end; see `end_run`."""
    trainer.model_wrapped = trainer.model
    trainer.accelerator.free_memory()
