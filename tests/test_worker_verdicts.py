"""What the consistency monitor refuses before the first step: worlds that are not tested."""

from types import SimpleNamespace

import pytest
from accelerate.parallelism_config import ParallelismConfig
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from hf_gradkit import WorkerConsistencyCallback
from hf_gradkit.data.tiny import tiny_llama


@pytest.mark.parametrize(
    ("state", "part"),
    [
        ({"distributed_type": DistributedType.FSDP, "fsdp_plugin": SimpleNamespace(fsdp_version=1)}, "first version"),
        ({"parallelism_config": ParallelismConfig(tp_size=2)}, "not tested with a parallelism configuration"),
        (
            {"parallelism_config": ParallelismConfig(cp_size=2)},
            "Leave out `parallelism_config`, or leave the",
        ),
    ],
)
def test_worlds_that_are_not_tested_refuse_before_the_first_step(tokenizer, monkeypatch, state, part):
    monkeypatch.setattr(AcceleratorState, "_shared_state", {"distributed_type": DistributedType.MULTI_GPU, **state})
    monitor = WorkerConsistencyCallback()
    with pytest.raises(ValueError, match=part):
        monitor.on_train_begin(
            SimpleNamespace(world_size=2),
            SimpleNamespace(is_world_process_zero=True),
            None,
            model=tiny_llama(tokenizer, hidden_size=32),
        )
