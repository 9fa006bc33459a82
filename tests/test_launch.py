"""Two real processes: what the launcher makes of them, and what our trainer says to replicas and to false FSDP."""

import textwrap

import pytest

from launch import launch

pytestmark = pytest.mark.multiprocess

PROBE = """
import sys
from accelerate import Accelerator
from launch import report_world

Accelerator(cpu=sys.argv[1] == "cpu")
report_world()
"""

TRAIN = """
import sys
import weakref
from hf_gradkit._backends import prepare_cpu_backends
from hf_gradkit import SFTConfig, SFTTrainer
from helpers import make_trainer, text_dataset, make_rows
from hf_gradkit.data.tiny import train_tokenizer
from hf_gradkit.cli.job import end_run
from launch import report_world

if sys.argv[3] == "prepared":
    prepare_cpu_backends()
tokenizer = train_tokenizer([row["text"] for row in make_rows(64)], vocab_size=300)
trainer = make_trainer(
    SFTTrainer, SFTConfig, tokenizer, sys.argv[1], text_dataset(8), use_cpu=sys.argv[2] == "cpu", save_strategy="no"
)
trainer.train()
report_world(trainer)
print(f"step {trainer.state.global_step}")  # one string each: two processes write to one pipe
wrapped = weakref.ref(trainer.model_wrapped)
print(f"wrapped {type(wrapped()).__name__}")
end_run(trainer)
print(f"gone {wrapped() is None}")
"""


LEAVE = """
import sys
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from hf_gradkit._backends import prepare_cpu_backends

prepare_cpu_backends()
dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))  # holds the process group
print(f"{dist.get_world_size()} reduce by {dist.get_backend()}", flush=True)
sys.setswitchinterval(10)  # gloo's threads get Python's lock when the main thread waits, not before
dist.all_reduce_coalesced([torch.ones(1) for _ in range(1000)])  # to drop so many takes a thread its time
dist.destroy_process_group()
"""


@pytest.fixture
def script(tmp_path):
    def write(text: str):
        path = tmp_path / "script.py"
        path.write_text(textwrap.dedent(text))
        return path

    return write


def test_cpu_multi_gpu_starts_two_processes_that_are_one_world(script):
    launched = launch(script(PROBE), ["cpu"])
    launched.assert_world("MULTI_CPU")
    assert {world["backend"] for world in launched.worlds} == {"gloo"}


def test_assert_world_refuses_replicas(script):
    launched = launch(script(PROBE), ["unset"])
    assert launched.returncode == 0
    assert len(launched.worlds) == 2
    with pytest.raises(AssertionError):
        launched.assert_world("MULTI_CPU")


def test_sft_trainer_trains_as_one_world(script, tmp_path):
    """The other backends: test_backends.py."""
    launched = launch(script(TRAIN), [str(tmp_path / "out"), "cpu", "prepared"])
    launched.assert_backend("multi_gpu")
    for other in ("fsdp2", "zero1", "zero3"):
        with pytest.raises(AssertionError):
            launched.assert_backend(other)
    assert launched.output.count("step 4") == 2
    # A reducer that outlives the process group can hang the process that drops it.
    assert launched.output.count("gone True") == 2


def test_processes_end_after_gloo_s_threads(script):
    """Without the wait, "terminate called without an active exception"."""
    launched = launch(script(LEAVE))
    assert launched.returncode == 0, launched.output
    assert launched.output.count("2 reduce by gloo") == 2


def test_fsdp_that_would_be_ddp_is_refused(script, tmp_path):
    launched = launch(script(TRAIN), [str(tmp_path / "out"), "cpu", "as it is"], config="cpu/fsdp2")
    assert launched.returncode != 0
    assert "FSDP was asked for" in launched.output
    assert "cpu/fsdp2" in launched.output
    assert launched.worlds == []


def test_replicas_are_refused_by_the_trainer(script, tmp_path):
    launched = launch(script(TRAIN), [str(tmp_path / "out"), "unset", "prepared"], config=None)
    assert launched.returncode != 0
    assert "each of them its own model" in launched.output
    assert "--use_cpu true" in launched.output
    assert launched.worlds == []


def test_launch_kills_what_does_not_end(script):
    with pytest.raises(AssertionError, match="did not end within"):
        launch(script("import time; print('started', flush=True); time.sleep(600)"), timeout=10)
