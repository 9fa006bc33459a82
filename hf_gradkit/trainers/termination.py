"""SIGTERM, as clusters send it before they take a machine: the step ends, a checkpoint is written, then all exit."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import SaveStrategy

from .checkpoints import folder_of

EXIT_CODE = 128 + signal.SIGTERM
AT_ONCE = 5.0  # seconds within which signals are one


class Terminated(SystemExit):
    """Raised on all processes once the checkpoint that SIGTERM asked for is written; the exit code is 143."""


class StopWhenAsked(TrainerCallback):
    """Saves and stops after the step in which a process of the run was asked to stop.

    Processes hear of it in different steps, so they tell each other after each step and each checkpoint: one number
    is summed over them.

    Args:
        accelerator: the trainer's.
    """

    def __init__(self, accelerator: Any):
        self.accelerator = accelerator
        self.asked = False
        self.stopping = False

    def on_step_end(self, args, state, control, **kwargs):
        if self._any_asked():
            self.stopping = True
            control.should_save, control.should_evaluate = True, False

    def on_save(self, args, state, control, **kwargs):
        if not self.stopping and not self._any_asked():  # while the checkpoint was written
            return
        self.accelerator.wait_for_everyone()
        if state.is_world_process_zero:
            folder = folder_of(args.output_dir, state.global_step)
            words = "resume_from_checkpoint=True goes on from it."
            if args.save_only_model:
                words = f"It has the model alone (save_only_model): model_name_or_path={folder} begins anew from it."
            print(
                f"SIGTERM: the run stopped after step {state.global_step} of {state.max_steps} and saved {folder}. "
                f"{words}",
                file=sys.stderr,
                flush=True,
            )
        raise Terminated(EXIT_CODE)

    def _any_asked(self) -> bool:
        if self.accelerator.num_processes == 1:
            return self.asked
        asked = torch.tensor([float(self.asked)], device=self.accelerator.device)
        return self.accelerator.reduce(asked, "sum").item() > 0


@contextmanager
def saving_on_sigterm(trainer: Any) -> Iterator[None]:
    """While a trainer trains, let SIGTERM end it with a checkpoint, if it writes any and nobody else handles it."""
    saves = trainer.args.save_strategy != SaveStrategy.NO
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if not saves or not ours:
        yield
        return
    callback, process, first = StopWhenAsked(trainer.accelerator), os.getpid(), []

    def ask(number, frame):
        first.append(time.monotonic())
        # A supervisor that signals the whole group reaches a process twice, directly and through its launcher.
        if os.getpid() == process and first[-1] - first[0] < AT_ONCE:
            callback.asked = True
        else:  # it was meant to end at once; or a process that was forked off, for data
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)

    trainer.add_callback(callback)
    signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        trainer.remove_callback(callback)
