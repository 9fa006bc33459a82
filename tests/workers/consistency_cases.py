"""Run in each of several processes: train healthy and unhealthy runs under the consistency monitor."""

import contextlib
import json
import logging
import sys
from pathlib import Path

import torch
import trl
from accelerate import PartialState
from consistency_jobs import build
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from helpers import StopError, crash_after, make_rows
from hf_gradkit import GradientStatisticsCallback, WorkerConsistencyCallback
from hf_gradkit._backends import prepare_cpu_backends
from hf_gradkit.cli.job import release
from hf_gradkit.data.tiny import train_tokenizer
from launch import report_world


class OwnOrder(trl.SFTTrainer):
    """Shuffles on each rank by itself: with the seeds that `seeds` gives the ranks, all rows or the first `half`."""

    seeds = (0, 0)
    half = False

    def get_train_dataloader(self):
        generator = torch.Generator().manual_seed(self.seeds[PartialState().process_index])
        size = self.args.per_device_train_batch_size
        shuffled = {"shuffle": True, "generator": generator}
        if self.half:
            rows = len(self.train_dataset)
            shuffled = {"sampler": torch.randperm(rows, generator=generator)[: rows // 2].tolist()}
        return DataLoader(self.train_dataset, size, collate_fn=self.data_collator, **shuffled)


class OtherData(trl.SFTTrainer):
    """Gives rank 0 examples of another kind."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        if PartialState().process_index == 0:
            inputs["labels"] = inputs["labels"].masked_fill(inputs["labels"] != -100, 7)
            inputs["input_ids"] = inputs["input_ids"] % 9 + 4
        return super().training_step(model, inputs, num_items_in_batch)


class OwnSampler(trl.SFTTrainer):
    """Shards by itself: for twice the processes that train, or so that rank 1 goes over a tenth of its shard."""

    parts, loops = 2, False

    def get_train_dataloader(self):
        rank, rows = PartialState().process_index, len(self.train_dataset)
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(0)).tolist()[rank :: self.parts]
        if self.loops and rank == 1:
            order = (order[: rows // 20] * 20)[: rows // 2]
        size = self.args.per_device_train_batch_size
        return DataLoader(self.train_dataset, size, collate_fn=self.data_collator, sampler=order)


class WrongWorld(OwnSampler):
    """Half of the rows are never seen."""

    parts = 4


class Loops(OwnSampler):
    """Rank 1 sees 5 % of the rows again and again."""

    loops = True


class Scaled(trl.SFTTrainer):
    """Multiplies the gradient of rank 1."""

    factor = 20.0
    hooked = False

    def training_step(self, model, inputs, num_items_in_batch=None):
        if PartialState().process_index == 1 and not self.hooked:
            self.hooked = True
            for parameter in self.model.parameters():
                parameter.register_hook(lambda gradient: gradient * self.factor)
        return super().training_step(model, inputs, num_items_in_batch)


class Flipped(Scaled):
    """Rank 1 goes uphill."""

    factor = -1.0


FAULTS = {
    "own order": OwnOrder,
    "other data": OtherData,
    "wrong world": WrongWorld,
    "loops": Loops,
    "scaled": Scaled,
    "flipped": Flipped,
}


class OwnHook(TrainerCallback):
    """A communication hook of the user's."""

    def on_train_begin(self, args, state, control, **kwargs):
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

        self.trainer.model_wrapped.register_comm_hook(None, allreduce_hook)


class Messages(logging.Handler):
    """Keeps what the callback warns of."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.kept: list[str] = []

    def emit(self, record):
        self.kept.append(record.getMessage())


def local_gradient(trainer) -> tuple[torch.Tensor, float]:
    """This rank's gradient of its first step and loss per token of its own, on the model before it is wrapped. (p,)"""
    loader = iter(trainer.get_train_dataloader())
    batches = [next(loader) for _ in range(trainer.args.gradient_accumulation_steps)]
    own = sum((batch["labels"][:, 1:] != -100).sum() for batch in batches)
    tokens = trainer.accelerator.gather(own.reshape(1)).sum()
    total = 0.0
    for batch in batches:
        loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=tokens)
        loss.backward()
        total += loss.item()
    flat = torch.cat([p.grad.flatten() for p in trainer.model.parameters()]).clone()
    trainer.model.zero_grad()
    return flat, total * tokens.item() / trainer.accelerator.num_processes / own.item()


def train_interrupted(trainer, step: int) -> list[bool]:
    """Stop in the middle of a run and train with another monitor; return whether hooks were left, after each."""
    crash, watching = crash_after(step), trainer.pop_callback(WorkerConsistencyCallback)
    for callback in (watching, crash):
        trainer.add_callback(callback)
    with contextlib.suppress(StopError):
        trainer.train()
    left = [bool(trainer.model._forward_hooks) and "training_step" in vars(trainer)]
    for callback in (watching, crash):
        trainer.remove_callback(callback)
    trainer.add_callback(GradientStatisticsCallback(trainer=trainer))
    trainer.train()
    left.append(bool(trainer.model._forward_hooks) or "training_step" in vars(trainer))
    trainer.remove_callback(GradientStatisticsCallback)
    trainer.add_callback(watching)
    return left


def run(case: dict, folder: Path, tokenizer) -> None:
    trainer = build(case, folder / case["name"], tokenizer, FAULTS.get(case["kind"], trl.SFTTrainer))
    trainer.seeds, trainer.half = case.get("seeds"), case.get("half", False)
    result = {}
    if case.get("exact"):
        flat, loss = local_gradient(trainer)
        everybody = trainer.accelerator.gather(flat[None]).double()
        cosines = torch.nn.functional.cosine_similarity(everybody[:, None], everybody[None], dim=-1)
        norms = everybody.norm(dim=1)
        weighted = (torch.outer(norms, norms) * cosines).sum() - norms.square().sum()
        result["norms"], result["cosines"] = norms.tolist(), cosines.tolist()
        result["direction"] = float(weighted / (norms.sum().square() - norms.square().sum()))
        result["losses"] = trainer.accelerator.gather(torch.tensor([loss])).tolist()
    hook = OwnHook()
    hook.trainer = trainer
    if case.get("hook") == "first":
        trainer.add_callback(hook)
    messages = Messages()
    logger = logging.getLogger("hf_gradkit.callbacks")
    logger.addHandler(messages)
    if case.get("watch", True):
        trainer.add_callback(WorkerConsistencyCallback(**{"trainer": trainer, **case.get("callback", {})}))
    if case.get("hook") == "later":
        trainer.add_callback(hook)
    resume = case.get("resume")
    if "interrupted" in case:
        result["left"] = train_interrupted(trainer, case["interrupted"])
    try:
        trainer.train(resume_from_checkpoint=resume and str(folder / resume))
    except RuntimeError as error:
        if case.get("hook") != "later":
            raise
        result["error"] = str(error)
    logger.removeHandler(messages)
    if trainer.accelerator.is_main_process:
        result |= {"warnings": messages.kept, "logs": trainer.state.log_history}
        (folder / f"{case['name']}.json").write_text(json.dumps(result))
        if case.get("parameters"):
            torch.save(trainer.model.state_dict(), folder / f"{case['name']}.pt")
    return trainer


def main() -> None:
    prepare_cpu_backends()
    cases, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    tokenizer = train_tokenizer([row["text"] for row in make_rows(64)], vocab_size=300)
    trainer = None
    for case in cases:
        if trainer is not None:
            release(trainer)
        trainer = run(case, folder, tokenizer)
    report_world(trainer)
    release(trainer)


if __name__ == "__main__":
    main()
