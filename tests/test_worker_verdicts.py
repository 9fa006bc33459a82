"""What the consistency monitor says, and when it must not: few batches, unknown directions, untested worlds."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.parallelism_config import ParallelismConfig
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from hf_gradkit import WorkerConsistencyCallback
from hf_gradkit.callbacks.worker_agreement import WorkerAgreement, packed
from hf_gradkit.callbacks.worker_gradients import WorkerGradient
from hf_gradkit.callbacks.worker_verdicts import EPOCH, FAR, LEAST
from hf_gradkit.data.tiny import tiny_llama
from hf_gradkit.gradients.workers import ChangeWithin


def gathered(losses, seed):
    """What two workers pack whose gradients have nothing in common."""
    generator = torch.Generator().manual_seed(seed)
    sketches = torch.randn(2, 16, generator=generator)
    sizes = [(float(sketch.square().sum()), sketch) for sketch in sketches]
    return torch.stack(
        [
            packed(WorkerGradient(square, sketch, 9 * square, 1.0, 8.0, float("nan")), loss)
            for (square, sketch), loss in zip(sizes, losses, strict=True)
        ]
    )


@pytest.mark.parametrize(("epoch", "found"), [(None, True), (64, True), (EPOCH, True), (EPOCH - 1, False)])
def test_workers_are_not_called_different_for_the_few_batches_of_an_epoch(epoch, found):
    agreement = WorkerAgreement(window=50, epoch=epoch)
    for step in range(20):
        agreement.update(gathered([5.0 + step % 3 / 10, 2.0], step), apart=False)
    assert ("offset" in agreement.verdicts()) == found


def test_batches_that_come_again_are_no_evidence_of_their_own():
    """Without shuffling: of eight batches a worker, each is seen six times."""
    errors = {8: [], None: []}
    for seed in range(50):
        losses = torch.randn(8, 2, generator=torch.Generator().manual_seed(seed)).repeat(6, 1)
        change = ChangeWithin(48)
        for values in losses:
            change.update(values)
        for most in errors:
            errors[most].append(change.offset(most=most)[1])
    assert max(errors[8]) < FAR < max(errors[None])


def test_an_expected_direction_that_stayed_unknown_is_explained():
    agreement = WorkerAgreement(window=50, epoch=None)
    for step in range(LEAST):
        assert agreement.unknown_direction() is None
        figures, _ = agreement.update(gathered([1.0, 1.0], step), apart=False)
        assert "consistency/direction_expected" not in figures
    assert "stayed unknown in all 16 monitored steps" in agreement.unknown_direction()
    never = WorkerAgreement(window=50, epoch=None)  # without noise that is known, which is said elsewhere
    for step in range(LEAST):
        never.update(gathered([1.0, 1.0], step).index_fill(1, torch.tensor([2]), float("nan")), apart=False)
    assert never.unknown_direction() is None


# ---- what is refused ------------------------------------------------------------------------------------------------


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
