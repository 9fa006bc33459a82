"""Starts two real processes through `accelerate launch`, and says what they were.

A launch that exits with 0 proves nothing: `--cpu --num_processes 2` and `distributed_type: MULTI_CPU` start one
process without a word, and without `use_cpu=True` in the script two processes train two replicas. So the processes
write down what accelerate made of them, and a test reads that.
"""

import contextlib
import gc
import json
import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

CONFIGS = Path(__file__).resolve().parent.parent / "accelerate_configs"
RUN_MODULE = Path(__file__).parent / "workers" / "run_module.py"
REPORT = "GRADKIT_TEST_WORLD"  # environment variable with the folder that the processes report to
if REPORT in os.environ:
    # In a started process, which has imported the rest by now: every start and end of a trainer collects garbage, and
    # to walk through all modules each time took up to half of the time of a worker with many short runs.
    gc.freeze()

# What a trainer's processes are when a configuration of accelerate_configs/cpu/ is what it says.
BACKENDS = {
    "multi_gpu": {
        "started_as": "DDP",
        "distributed_type": "MULTI_CPU",
        "wrapper": "DistributedDataParallel",
        "sharded": False,
    },
    "fsdp2": {"started_as": "FSDP2", "distributed_type": "FSDP", "sharded": True},
    **{
        f"zero{stage}": {
            "started_as": f"ZeRO-{stage}",
            "distributed_type": "DEEPSPEED",
            "wrapper": "DeepSpeedEngine",
            "zero_stage": stage,
            "sharded": stage == 3,
        }
        for stage in (1, 2, 3)
    },
}


@dataclass
class Launched:
    """A launch that ended.

    Attributes:
        returncode: of the launcher.
        output: of all processes, stdout and stderr.
        worlds: what each process that called `report_world` said, by rank.
    """

    returncode: int
    output: str
    worlds: list[dict[str, Any]] = field(default_factory=list)

    def assert_world(self, distributed_type: str, num_processes: int = 2) -> None:
        """Assert that this many processes trained together, under this backend."""
        assert self.returncode == 0, self.output[-6000:]
        assert [world["process_index"] for world in self.worlds] == list(range(num_processes)), self.output[-6000:]
        for world in self.worlds:
            assert world["num_processes"] == num_processes, world
            assert world["distributed_type"] == distributed_type, world

    def assert_command(self, name: str, distributed_type: str = "MULTI_CPU") -> None:
        """Assert that two processes ran together what trains nothing, started as what `cpu/<name>.yaml` says."""
        self.assert_world(distributed_type)
        for world in self.worlds:
            assert world["started_as"] == BACKENDS[name]["started_as"], world

    def assert_backend(self, name: str) -> None:
        """Assert that two processes trained together, and as what `cpu/<name>.yaml` says (see `report_world`)."""
        self.assert_world(BACKENDS[name]["distributed_type"])
        for world in self.worlds:
            assert {key: world[key] for key in BACKENDS[name]} == BACKENDS[name], world


def launch(
    target: str | Path,
    args: tuple[str, ...] | list[str] = (),
    config: str | None = "cpu/multi_gpu",
    timeout: float = 180,
    cwd: str | Path | None = None,
    env: dict[str, str] | None = None,
) -> Launched:
    """Start a script (a path) or a module (a dotted name) as two processes, and wait for them.

    Args:
        target: what runs in each process. A module reports its world by itself, if it is a command of ours.
        args: its arguments.
        config: a file of accelerate_configs/, by name; None starts with torchrun, without accelerate's launcher.
        timeout: seconds after which all processes are killed.
        cwd: folder to run in.
        env: further environment variables.
    """
    port = free_port()
    if config is None:
        start = ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    else:
        path = CONFIGS / f"{config}.yaml"
        start = ["accelerate.commands.launch", "--config_file", str(path), "--main_process_port", str(port)]
    is_script = Path(target).suffix == ".py"
    return run(
        [sys.executable, "-m", *start, *([] if is_script else [str(RUN_MODULE)]), str(target), *args],
        timeout,
        cwd,
        env,
    )


def run(
    command: list[str], timeout: float = 180, cwd: str | Path | None = None, env: dict[str, str] | None = None
) -> Launched:
    """Run a command, and kill it with everything that it started when the time is up."""
    with tempfile.TemporaryDirectory() as reports:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
            REPORT: reports,
            **(env or {}),
        }
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            _kill(process.pid)
            output, _ = process.communicate()
            raise AssertionError(f"{command} did not end within {timeout} s. Its output:\n{output[-6000:]}") from None
        worlds = [json.loads(path.read_text()) for path in sorted(Path(reports).glob("rank*.json"))]
    return Launched(process.returncode, output, worlds)


def _kill(pid: int) -> None:
    """Kill a process and all below it: torchrun puts each worker in a process group of its own."""
    top = psutil.Process(pid)
    for process in [*top.children(recursive=True), top]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def report_world(trainer: Any = None) -> None:
    """Called in a started process: write down what accelerate made of it, and of a trainer that has trained."""
    from accelerate import PartialState
    from accelerate.state import AcceleratorState

    from hf_gradkit._backends import outlive_gloo

    outlive_gloo()  # a worker that is one of these tests' own ends as a command of ours does
    state = PartialState()
    # DeepSpeed and FSDP are known to the accelerator's state only.
    full = AcceleratorState() if AcceleratorState._shared_state else state
    world = {
        "started_as": started_as(),
        "process_index": state.process_index,
        "num_processes": state.num_processes,
        "distributed_type": full.distributed_type.value,
        "backend": state.backend,
        "device": str(state.device),
        **({} if trainer is None else wrapping(trainer)),
    }
    (Path(os.environ[REPORT]) / f"rank{state.process_index}-{os.getpid()}.json").write_text(json.dumps(world))


def started_as() -> str:
    """Return what accelerate's launcher told this process to train as."""
    from hf_gradkit._backends import launched_as

    if launched_as("FSDP"):
        return f"FSDP{os.environ['FSDP_VERSION']}"
    return f"ZeRO-{os.environ['ACCELERATE_DEEPSPEED_ZERO_STAGE']}" if launched_as("DEEPSPEED") else "DDP"


def wrapping(trainer: Any) -> dict[str, Any]:
    """Return what a trainer's model was wrapped in, and whether each process holds a part of each parameter only."""
    from torch.distributed.tensor import DTensor

    def is_sharded(parameter: Any) -> bool:
        if hasattr(parameter, "ds_tensor"):  # ZeRO-3
            return parameter.ds_tensor.numel() < parameter.ds_numel
        # By its placement: of a reward head, a single row, the first process holds all.
        return isinstance(parameter, DTensor) and any(placement.is_shard() for placement in parameter.placements)

    wrapped = trainer.model_wrapped
    sharded = {is_sharded(parameter) for parameter in wrapped.parameters()}
    return {
        "wrapper": type(wrapped).__name__,
        "sharded": sharded.pop() if len(sharded) == 1 else "some are, some are not",
        "zero_stage": wrapped.zero_optimization_stage() if hasattr(wrapped, "zero_optimization_stage") else None,
    }


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]
