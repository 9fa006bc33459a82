"""`gradkit sft` with one fault in it: run in each of two processes, with the fault in the environment as JSON.

{"kind": "kill", "rank": 1, "step": 3}       this process dies in the middle of the third step; once, if restarted
{"kind": "kill in save", "rank": 0, "step": 4}    ... when the checkpoint holds the model and the optimizer
{"kind": "kill after list", "rank": 0, "step": 4} ... when all is written but trainer_state.json
{"kind": "stop", "rank": 1, "step": 3, "timeout": 10}  it stops in the middle of the third step, and is still there
{"kind": "disk full", "step": 6, "bytes": n} no process may write files of more than so many bytes from here on
{"kind": "signal", "number": 15, "step": 7}  this process and then the launcher get a signal, after this step
{"kind": "signal in save", "number": 15, "step": 4}    the launcher gets it while a checkpoint is written

"environment" beside a fault: of accelerate's variables, other values than those of the configuration.
"""

import json
import os
import resource
import signal
import sys
import time
from datetime import timedelta

from accelerate import PartialState
from transformers import TrainerCallback

from hf_gradkit import SFTConfig, SFTTrainer
from hf_gradkit.cli.job import run, trainer_of
from hf_gradkit.trainers.termination import StopWhenAsked
from launch import report_world

FAULT = json.loads(os.environ.get("GRADKIT_TEST_FAULT", "{}"))
if FAULT.get("kind") == "stop":  # what transformers makes of `ddp_timeout`, on accelerators only
    PartialState(cpu=True, timeout=timedelta(seconds=FAULT["timeout"]))
os.environ |= FAULT.get("environment", {})


def die(rank: int, number: int = signal.SIGKILL) -> None:
    if rank == FAULT["rank"] and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        os.kill(os.getpid(), number)


def tell_launcher(trainer: SFTTrainer) -> None:
    """Send the launcher a signal, and wait until it has passed it on; Ctrl-C ends the wait by itself."""
    (ours,) = (one for one in trainer.callback_handler.callbacks if isinstance(one, StopWhenAsked))
    ours.asked = False  # what came before was this process's own
    os.kill(os.getppid(), FAULT["number"])
    for _ in range(600):
        if ours.asked:
            return
        time.sleep(0.05)
    raise AssertionError(f"signal {FAULT['number']} did not come back within 30 s")


class Faults(TrainerCallback):
    def __init__(self, trainer: SFTTrainer):
        self.trainer, self.rank = trainer, trainer.accelerator.process_index

    def on_substep_end(self, args, state, control, **kwargs):
        if FAULT.get("kind") in ("kill", "stop") and state.global_step == FAULT["step"] - 1:
            die(self.rank, signal.SIGKILL if FAULT["kind"] == "kill" else signal.SIGSTOP)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step != FAULT.get("step"):
            return
        if FAULT["kind"] == "disk full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (FAULT["bytes"], resource.RLIM_INFINITY))
        if FAULT["kind"] == "signal" and self.rank == 0:
            if FAULT["number"] == signal.SIGTERM:  # as from a supervisor that signals the whole group
                os.kill(os.getpid(), FAULT["number"])
            tell_launcher(self.trainer)


class FaultyTrainer(SFTTrainer):
    def __init__(self, *positional, **keywords):
        super().__init__(*positional, **keywords)
        self.add_callback(Faults(self))

    def train(self, *positional, **keywords):
        result = super().train(*positional, **keywords)
        report_world(self)
        return result

    def _save_rng_state(self, output_dir):
        here = self.state.global_step == FAULT.get("step")
        if here and FAULT["kind"] == "kill in save":
            die(self.accelerator.process_index)
        if here and FAULT["kind"] == "signal in save" and self.accelerator.is_main_process:
            tell_launcher(self)
        super()._save_rng_state(output_dir)
        if here and FAULT["kind"] == "kill after list":
            die(self.accelerator.process_index)


if __name__ == "__main__":
    sys.exit(run("sft", SFTConfig, trainer_of(FaultyTrainer), None))
