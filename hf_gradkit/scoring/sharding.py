"""Splits a loaded model over the processes of a launch that asks for it: FSDP2, or DeepSpeed ZeRO-3.

Nothing is trained, so there is no optimizer and no mixed precision: weights keep the types that they were loaded with,
and figures are those of one process up to rounding. A split model gathers its parts in each forward, so all processes
must call it equally often; see `in_step` of `score_rows`.
"""

from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from peft import PeftModel
from torch import nn

from .._backends import check_fsdp_version, launched_as
from .._compat import block_names
from .processes import world

FSDP2, ZERO_3 = "FSDP2", "ZeRO-3"


def launched_to_split() -> str | None:
    """Return by what the launch says that models are split over the processes, "FSDP2" or "ZeRO-3", or None.

    ZeRO-1 and ZeRO-2 split what training adds to a model, and leave the model whole.

    Raises:
        ValueError: for the first version of FSDP.
    """
    if world().num_processes == 1:
        return None
    # Read from the environment, as accelerate does: an `Accelerator` made here would be in the way of a trainer's.
    if launched_as("FSDP"):
        check_fsdp_version(FullyShardedDataParallelPlugin().fsdp_version)
        return FSDP2
    return ZERO_3 if launched_as("DEEPSPEED") and DeepSpeedPlugin().zero_stage == 3 else None


def is_split(model: nn.Module) -> bool:
    """Return whether each process holds only a part of a model's parameters."""
    from torch.distributed.tensor import DTensor

    return any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in model.parameters())


def split_model(model: nn.Module, how: str) -> nn.Module:
    """Split a model over all processes, and return it on their devices, of which none need hold all of it.

    Args:
        model: a transformers model, or a PEFT model of one, in evaluation mode, with the same weights everywhere.
        how: "FSDP2" or "ZeRO-3".
    """
    return {FSDP2: _shard, ZERO_3: _partition}[how](model)


def _shard(model: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(world().device.type, (world().num_processes,))
    blocks = block_names(model.get_base_model() if isinstance(model, PeftModel) else model)
    for module in list(model.modules()):
        if type(module).__name__ in blocks:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if isinstance(model, PeftModel):
        # PEFT generates by the inner model, past the outer one's forward, which gathers what is in no block.
        register_fsdp_forward_method(model, "generate")
    return model


def _partition(model: nn.Module) -> nn.Module:
    import deepspeed

    given = DeepSpeedPlugin().deepspeed_config["zero_optimization"]
    # What is left to a trainer ("auto") keeps DeepSpeed's default; without an optimizer there is none to offload.
    zero = {name: value for name, value in given.items() if value != "auto" and name != "offload_optimizer"}
    # As the Trainer sets it: smaller ones, such as norms' weights, stay whole.
    zero.setdefault("stage3_param_persistence_threshold", 10 * model.config.get_text_config().hidden_size)
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero}
    deepspeed.zero.Init(module=model, config_dict_or_path=config, dtype=next(model.parameters()).dtype)
    deepspeed.initialize(model=model, config=config)  # sets the hooks that gather a module while it runs
    return model.eval()
