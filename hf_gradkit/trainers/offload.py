"""DeepSpeed's offloading of the optimizer: what it compiles for that, and whether this machine can."""

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from accelerate.utils import DistributedType

# What DeepSpeed compiles for an optimizer on the CPU, by the name in its configuration.
COMPILED = {"adam": "cpu_adam", "adamw": "cpu_adam", "adagrad": "cpu_adagrad", "lion": "cpu_lion"}


def check_offload(accelerator: Any) -> None:
    """Raise `ValueError` where DeepSpeed would have to compile an optimizer and this machine has nothing to do so.

    Args:
        accelerator: the trainer's.
    """
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return
    config = accelerator.state.deepspeed_plugin.deepspeed_config
    device = (config.get("zero_optimization", {}).get("offload_optimizer") or {}).get("device", "none")
    compiled = None if device == "none" else compiled_optimizer(config)
    if compiled is None or _installed(compiled):
        return
    compiler = os.environ.get("CXX", "c++")  # as PyTorch finds it
    missing = [] if shutil.which("ninja") else ["ninja"]
    if not shutil.which((shlex.split(compiler) or ["c++"])[0]) and not _built_before(compiled):
        missing.append(f"a C++ compiler ({compiler}; the environment variable CXX names another)")
    if missing:
        raise ValueError(
            f"The DeepSpeed configuration offloads the optimizer (`offload_optimizer`, device {device!r}). For that "
            f"DeepSpeed compiles an optimizer of its own, {compiled}, and this machine lacks {' and '.join(missing)}. "
            "Install a C++ compiler (Debian, Ubuntu: apt install g++) and ninja (pip install ninja), or set "
            "`offload_optimizer_device: none`. To offload PyTorch's own optimizer, set "
            '"zero_force_ds_cpu_optimizer": false in a `deepspeed_config_file`.'
        )


def compiled_optimizer(config: dict[str, Any]) -> str | None:
    """Return what DeepSpeed compiles for an optimizer that is offloaded, or None if it takes PyTorch's.

    Args:
        config: DeepSpeed's configuration.
    """
    if "optimizer" in config:
        chosen = config["optimizer"]
        return None if chosen.get("params", {}).get("torch_adam") else COMPILED.get(chosen["type"].lower())
    # accelerate puts DeepSpeed's Adam in the place of nearly any other
    return "cpu_adam" if config.get("zero_force_ds_cpu_optimizer", True) else None


def _installed(name: str) -> bool:
    """Whether DeepSpeed was installed with it compiled."""
    from deepspeed.git_version_info import installed_ops

    return bool(installed_ops.get(name))


def _built_before(name: str) -> bool:
    """Whether an earlier run compiled it, so that ninja finds nothing to do."""
    from torch.utils.cpp_extension import get_default_build_root

    file = f"{name}/{name}.so"
    given = os.environ.get("TORCH_EXTENSIONS_DIR")
    if given is not None:
        return (Path(given) / file).is_file()
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    return any(Path(get_default_build_root()).glob(f"{python}*/{file}"))
