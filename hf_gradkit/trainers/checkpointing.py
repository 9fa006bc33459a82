"""What the trainers share around checkpoints: whole ones only, an orderly end on SIGTERM, and a last word."""

import logging
import shutil
import sys
from pathlib import Path
from typing import Any

from ..callbacks.gradient_monitor import GradientMonitor
from ..callbacks.worker_consistency import WorkerConsistencyCallback
from ..reporting.run_info import write_run_info
from ..scoring.processes import on_main
from .checkpoints import (
    CheckpointError,
    check_same_world,
    check_whole,
    find_last_checkpoint,
    folder_of,
    last_whole_checkpoint,
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
    - SIGTERM lets the step end, writes a checkpoint, and exits with code 143; only where the run writes checkpoints
      at all, and nobody else handles the signal. A second SIGTERM ends the process at once.
    - What the run is (`gradkit_run.json`) is written before its first step, where the configuration is one of ours.
    - A run that ends with an error or Ctrl-C says which checkpoint is left, and leaves no monitor on the model.
    """

    def train(self, resume_from_checkpoint=None, *positional, **keywords):
        checkpoint = self._checkpoint_to_resume(resume_from_checkpoint)
        if self.args.should_save and isinstance(self.args, MonitorArguments):
            write_run_info(self, self._run_facts())
        try:
            with saving_on_sigterm(self):
                return super().train(checkpoint, *positional, **keywords)
        except Terminated:
            raise
        except BaseException as error:
            self._say_what_is_left(error, checkpoint)
            raise
        finally:
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, (GradientMonitor, WorkerConsistencyCallback)):
                    callback.stop_watching()  # callbacks are not told of an error in the middle of a step

    def _run_facts(self) -> dict[str, Any]:
        """Return what the run's information file holds of the method besides the settings."""
        return {}

    def _checkpoint_to_resume(self, resume: str | bool | None) -> str | None:
        if not resume:
            return None
        if resume is True:
            resume = on_main(lambda: find_last_checkpoint(self.args.output_dir))
            if resume is None:
                raise ValueError(f"`output_dir` {self.args.output_dir!r} holds no checkpoint to go on from.")
        else:
            on_main(lambda: check_whole(str(resume)))
        check_same_world(str(resume), self)
        return str(resume)

    def _save_checkpoint(self, model, trial):
        folder = folder_of(self.args.output_dir, self.state.global_step)
        if self.args.should_save and trial is None and folder.exists():
            # Of a run that was cut short here, or of an earlier one: what of it would stay would look like this one's.
            logger.warning(f"{folder} was there already and is written anew.")
            shutil.rmtree(folder)
        self.accelerator.wait_for_everyone()
        try:
            super()._save_checkpoint(model, trial)
        except Exception as error:
            raise CheckpointError(
                f"The checkpoint {folder} could not be written: {type(error).__name__}: {error}. It is not whole and "
                "no run will go on from it. Make room or give permission, then resume."
            ) from error
        self.accelerator.wait_for_everyone()

    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)  # the last part that every process writes
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            write_file_list(Path(output_dir), world_facts(self))

    def _say_what_is_left(self, error: BaseException, resumed: str | None) -> None:
        """Name the last whole checkpoint; before the first step of a resumed run, the one before what it read."""
        step = self.state.global_step
        if not self.is_world_process_zero() or not step:
            return
        what = "Ctrl-C" if isinstance(error, KeyboardInterrupt) else type(error).__name__
        if resumed is not None and what != "Ctrl-C" and step <= step_of(Path(resumed)):
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
        print(" ".join(words), file=sys.stderr, flush=True)
