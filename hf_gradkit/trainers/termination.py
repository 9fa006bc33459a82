"""SIGTERM, as clusters send it before they take a machine: the step ends, a checkpoint is written, then all exit."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import SaveStrategy

from .checkpoints import folder_of

EXIT_CODE = 128 + signal.SIGTERM


class Terminated(SystemExit):
    """Raised on all processes once the checkpoint that SIGTERM asked for is written; the exit code is 143."""


class StopWhenAsked(TrainerCallback):
    """Saves and stops after the step in which a process of the run was asked to stop.

    Processes hear of it in different steps, so they tell each other after each: one number is summed over them.

    Args:
        accelerator: the trainer's.
    """

    def __init__(self, accelerator: Any):
        self.accelerator = accelerator
        self.asked = False
        self.stopping = False

    def on_step_end(self, args, state, control, **kwargs):
        asked = self.asked
        if self.accelerator.num_processes > 1:
            asked = torch.tensor([float(asked)], device=self.accelerator.device)
            asked = self.accelerator.reduce(asked, "sum").item() > 0
        if asked:
            self.stopping = True
            control.should_save, control.should_evaluate = True, False

    def on_save(self, args, state, control, **kwargs):
        if not self.stopping:
            return
        self.accelerator.wait_for_everyone()
        if state.is_world_process_zero:
            folder = folder_of(args.output_dir, state.global_step)
            print(
                f"SIGTERM: the run stopped after step {state.global_step} of {state.max_steps} and saved {folder}. "
                "resume_from_checkpoint=True goes on from it.",
                file=sys.stderr,
                flush=True,
            )
        raise Terminated(EXIT_CODE)


@contextmanager
def saving_on_sigterm(trainer: Any) -> Iterator[None]:
    """While a trainer trains, let SIGTERM end it with a checkpoint, if it writes any and nobody else handles it."""
    saves = trainer.args.save_strategy != SaveStrategy.NO
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if not saves or not ours:
        yield
        return
    callback, process = StopWhenAsked(trainer.accelerator), os.getpid()

    def ask(number, frame):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends the process
        if os.getpid() == process:
            callback.asked = True
        else:  # a process that was forked off, for data
            os.kill(os.getpid(), signal.SIGTERM)

    trainer.add_callback(callback)
    signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        trainer.remove_callback(callback)
