"""SIGTERM in one process: what is saved and said, and when it ends the process at once."""

import os
import signal
import subprocess
import sys

import pytest
from transformers import TrainerCallback

import hf_gradkit
from helpers import make_trainer, text_dataset
from hf_gradkit.trainers.checkpoints import find_last_checkpoint
from hf_gradkit.trainers.termination import EXIT_CODE, Terminated

SFT = (hf_gradkit.SFTTrainer, hf_gradkit.SFTConfig)
SAVING = {"max_steps": 6, "per_device_train_batch_size": 2, "save_strategy": "steps", "save_steps": 4}

# Signals so many seconds apart, with 5 seconds made .3, outside of a training loop, whose steps take no time.
TWICE = """
import os, signal, sys, time
from types import SimpleNamespace
from transformers.trainer_utils import SaveStrategy
import hf_gradkit.trainers.termination as termination

termination.AT_ONCE = 0.3
callbacks = []
trainer = SimpleNamespace(
    args=SimpleNamespace(save_strategy=SaveStrategy.STEPS), accelerator=SimpleNamespace(num_processes=1),
    add_callback=callbacks.append, remove_callback=callbacks.remove,
)
with termination.saving_on_sigterm(trainer):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(float(sys.argv[1]))
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.1)
    print("asked", callbacks[0].asked)
"""


class Signals(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("model_only", [False, True])
def test_what_it_leaves_and_says(model_only, tokenizer, tmp_path, capsys):
    options = {**SAVING, "save_only_model": model_only}
    trainer = make_trainer(*SFT, tokenizer, tmp_path, text_dataset(26), **options)
    trainer.add_callback(Signals())
    with pytest.raises(Terminated) as ended:
        trainer.train()
    assert ended.value.code == EXIT_CODE == 143
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    checkpoint = str(tmp_path / "checkpoint-2")
    said = capsys.readouterr().err
    assert f"SIGTERM: the run stopped after step 2 of 6 and saved {checkpoint}." in said
    assert (f"(save_only_model): model_name_or_path={checkpoint} begins anew" in said) == model_only
    assert ("resume_from_checkpoint=True goes on from it" in said) != model_only
    assert find_last_checkpoint(tmp_path) == (None if model_only else checkpoint)


@pytest.mark.parametrize(("seconds", "code"), [(0.0, 0), (0.5, -signal.SIGTERM)])
def test_a_second_signal(seconds, code):
    """One right after the first, as of a supervisor that tells a whole group, is the same; a later one is not."""
    ended = subprocess.run([sys.executable, "-c", TWICE, str(seconds)], capture_output=True, text=True, timeout=120)
    assert ended.returncode == code, ended.stderr
    assert ("asked True" in ended.stdout) == (code == 0)
