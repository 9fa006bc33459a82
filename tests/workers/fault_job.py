"""`gradkit sft` with one fault in it: run in each of two processes, with the fault in the environment as JSON.

{"kind": "kill", "rank": 1, "step": 3}       this process dies in the middle of the third step
{"kind": "kill in save", "rank": 0, "step": 4}    ... when the checkpoint holds the model and the optimizer
{"kind": "kill after list", "rank": 0, "step": 4} ... when all is written but trainer_state.json
{"kind": "disk full", "step": 6}             no process may write files of more than a few bytes from here on
{"kind": "signal", "number": 15, "step": 7}  the launcher gets a signal, after this step
"""

import json
import os
import resource
import signal
import sys
import time

from transformers import TrainerCallback

from hf_gradkit import SFTConfig, SFTTrainer
from hf_gradkit.cli.job import run, trainer_of
from launch import report_world

FAULT = json.loads(os.environ.get("GRADKIT_TEST_FAULT", "{}"))


def die(rank: int) -> None:
    if rank == FAULT["rank"]:
        os.kill(os.getpid(), signal.SIGKILL)


class Faults(TrainerCallback):
    def __init__(self, rank: int):
        self.rank = rank

    def on_substep_end(self, args, state, control, **kwargs):
        if FAULT.get("kind") == "kill" and state.global_step == FAULT["step"] - 1:
            die(self.rank)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step != FAULT.get("step"):
            return
        if FAULT["kind"] == "disk full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
        if FAULT["kind"] == "signal" and self.rank == 0:
            os.kill(os.getppid(), FAULT["number"])
            for _ in range(600):  # until the launcher has passed it on; Ctrl-C ends the wait by itself
                if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
                    return
                time.sleep(0.05)
            raise AssertionError(f"signal {FAULT['number']} did not come back within 30 s")


class FaultyTrainer(SFTTrainer):
    def __init__(self, *positional, **keywords):
        super().__init__(*positional, **keywords)
        self.add_callback(Faults(self.accelerator.process_index))

    def train(self, *positional, **keywords):
        print(f"rank {self.accelerator.process_index} resumes from {positional or keywords}", flush=True)
        result = super().train(*positional, **keywords)
        report_world(self)
        return result

    def _save_rng_state(self, output_dir):
        here = self.state.global_step == FAULT.get("step")
        if here and FAULT["kind"] == "kill in save":
            die(self.accelerator.process_index)
        super()._save_rng_state(output_dir)
        if here and FAULT["kind"] == "kill after list":
            die(self.accelerator.process_index)


if __name__ == "__main__":
    sys.exit(run("sft", SFTConfig, trainer_of(FaultyTrainer), None))
