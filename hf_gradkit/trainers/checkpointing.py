"""What the trainers share around checkpoints: whole ones only, an orderly end on SIGTERM, and a last word."""

import logging
import shutil
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from .._backends import lost_another_process, whole_state_dict
from ..callbacks.gradient_monitor import GradientMonitor
from ..callbacks.worker_consistency import WorkerConsistencyCallback
from ..reporting.run_info import write_run_info
from .checkpoints import (
    MODEL_ONLY,
    STARTED,
    CheckpointError,
    check_same_world,
    checkpoints,
    find_checkpoint,
    folder_of,
    last_start,
    last_whole_checkpoint,
    started,
    step_of,
    world_facts,
    write_file_list,
)
from .monitors import MonitorArguments
from .termination import Terminated, saving_on_sigterm

logger = logging.getLogger(__name__)


class CheckpointMixin:
    """Goes before a `transformers.Trainer` subclass. The run itself is the parent's.

    - A checkpoint that was not written to its end, or that lost a file, is never resumed from.
    - A checkpoint of the last step trains nothing more.
    - `save_model` writes a model that `from_pretrained` loads, also where FSDP2 saves checkpoints in parts.
    - SIGTERM lets the step end, writes a checkpoint, and exits with code 143; only where the run writes checkpoints
      at all, and nobody else handles the signal. Another one, 5 seconds later or more, ends the process at once.
    - What the run is (`gradkit_run.json`) is written before its first step, where the configuration is one of ours.
    - A run that ends with an error or Ctrl-C says which checkpoint is left, and leaves no monitor on the model.
    """

    _started: float | None = None  # the run; see `checkpoints.STARTED`

    def train(self, resume_from_checkpoint=None, *positional, **keywords):
        checkpoint = find_checkpoint(resume_from_checkpoint, self.args.output_dir)
        if checkpoint is not None:
            check_same_world(checkpoint, self)
        begins_at = 0 if checkpoint is None else step_of(checkpoint)  # it may be gone in the end
        self._begin(checkpoint)
        if self.args.should_save and isinstance(self.args, MonitorArguments):
            write_run_info(self, self._run_facts())
        try:
            with saving_on_sigterm(self):
                result = super().train(checkpoint, *positional, **keywords)
        except Terminated:
            raise
        except BaseException as error:
            self._say_what_is_left(error, checkpoint)
            raise
        finally:
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, (GradientMonitor, WorkerConsistencyCallback)):
                    callback.stop_watching()  # callbacks are not told of an error in the middle of a step
        if begins_at and self.state.global_step == begins_at and self.is_world_process_zero():
            logger.warning(
                f"{checkpoint} is of the last step, {self.state.global_step} of {self.state.max_steps}: nothing was "
                "left to train, and the model is that of the checkpoint."
            )
        return result

    def _begin(self, checkpoint: str | None) -> None:
        """Tell this run from others in its folder; the last one, if it is gone on with, stays the same."""
        before = None if checkpoint is None else started(checkpoint)
        goes_on = before is not None and before == last_start(self.args.output_dir)
        self._started = before if goes_on else time.time()
        if checkpoint is not None or not self.is_world_process_zero():
            return
        there = next(checkpoints(self.args.output_dir), None)
        if there is not None:
            logger.warning(
                f"{self.args.output_dir} holds checkpoints of an earlier run, up to {there.name}. This run begins "
                "anew and writes its own beside them; resume_from_checkpoint=True will go on from its own only."
            )

    def _run_facts(self) -> dict[str, Any]:
        """Return what the run's information file holds of the method besides the settings."""
        return {STARTED: self._started}

    def _run_epoch(self, model, epoch, **keywords):
        if self.state.global_step >= self.state.max_steps:
            # A run that ends within an epoch went on from its last checkpoint; transformers would train a step more.
            self.control.should_training_stop = True
            return None
        return super()._run_epoch(model=model, epoch=epoch, **keywords)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        checkpoint = _internal_call and output_dir is not None
        with nullcontext() if checkpoint else whole_state_dict(self.accelerator):
            super().save_model(output_dir, _internal_call=_internal_call)

    def _save_checkpoint(self, model, trial):
        folder = folder_of(self.args.output_dir, self.state.global_step)
        if self.args.should_save and trial is None and folder.exists():
            # Of a run that was cut short here, or of an earlier one: what of it would stay would look like this one's.
            logger.warning(f"{folder} was there already and is written anew.")
            shutil.rmtree(folder)
        self.accelerator.wait_for_everyone()
        try:
            if self.args.save_only_model and self.args.should_save and trial is None:
                folder.mkdir(parents=True, exist_ok=True)
                write_file_list(folder, {**self._checkpoint_facts(), MODEL_ONLY: True})
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
        except Exception as error:
            cause = "Make room or give permission, then resume."
            if lost_another_process(error):
                cause = "Another process ended meanwhile: see what it said."
            raise CheckpointError(
                f"The checkpoint {folder} could not be written: {type(error).__name__}: {error}. It is not whole and "
                f"no run will go on from it. {cause}"
            ) from error

    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)  # the last part that every process writes
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            write_file_list(Path(output_dir), self._checkpoint_facts())

    def _checkpoint_facts(self) -> dict[str, Any]:
        return {**world_facts(self), STARTED: self._started}

    def _say_what_is_left(self, error: BaseException, resumed: str | None) -> None:
        """Name the last whole checkpoint; before the first step of a resumed run, the one before what it read.

        The first process says it, and the second as well where another one is gone, which may be the first.
        """
        step, rank = self.state.global_step, self.accelerator.process_index
        if not step or rank > int(lost_another_process(error)):
            return
        what = "Ctrl-C" if isinstance(error, KeyboardInterrupt) else type(error).__name__
        if resumed is not None and what != "Ctrl-C" and step <= step_of(resumed):
            before, _ = last_whole_checkpoint(Path(resumed).parent, before=resumed)
            left = "There is no whole one before it to go on from."
            if before is not None:
                left = f"The whole one before it is {before}: resume_from_checkpoint={before} goes on from it."
            words = [
                f"The run ended with {what} before it trained a step. If {resumed} could not be read, leave it.",
                left,
            ]
        else:
            found, passed_over = last_whole_checkpoint(self.args.output_dir)
            left = f"The last whole checkpoint is {found}: resume_from_checkpoint=True goes on from it."
            if found is None:
                left = "There is no whole checkpoint to go on from."
            words = [f"The run ended with {what} after step {step}.", *passed_over, left]
        if rank > 0:
            words.insert(0, "[rank 1]")
        print(" ".join(words), file=sys.stderr, flush=True)
