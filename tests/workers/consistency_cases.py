"""Run in each of several processes: train healthy and unhealthy runs under the consistency monitor."""

import json
import logging
import sys
from pathlib import Path

import torch
import trl
from accelerate import PartialState
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTConfig, ViTForImageClassification

from helpers import make_rows, make_trainer, text_dataset
from hf_gradkit import WorkerConsistencyCallback
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


class Images(Trainer):
    """A classifier of images, whose model takes no token ids."""

    def __init__(self, model, args, train_dataset, processing_class):
        super().__init__(images_model(), args, train_dataset=train_dataset)


def images_model() -> ViTForImageClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    return ViTForImageClassification(ViTConfig(**sizes, image_size=16, patch_size=8, num_labels=2))


def image_arguments(activation_checkpointing: bool = False, **options) -> TrainingArguments:
    return TrainingArguments(**options)


def images() -> Dataset:
    torch.manual_seed(0)
    return Dataset.from_list([{"pixel_values": torch.randn(3, 16, 16).tolist(), "labels": i % 2} for i in range(64)])


KINDS = {
    "healthy": trl.SFTTrainer,
    "own order": OwnOrder,
    "other data": OtherData,
    "wrong world": WrongWorld,
    "loops": Loops,
    "scaled": Scaled,
    "flipped": Flipped,
    "images": Images,
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


def run(case: dict, folder: Path, tokenizer) -> None:
    of_images = case["kind"] == "images"
    trainer = make_trainer(
        KINDS[case["kind"]],
        image_arguments if of_images else trl.SFTConfig,
        tokenizer,
        folder / case["name"],
        images() if of_images else text_dataset(case.get("rows", 512)),
        **case["options"],
    )
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
        trainer.add_callback(WorkerConsistencyCallback(trainer=trainer, **case.get("callback", {})))
    if case.get("hook") == "later":
        trainer.add_callback(hook)
    resume = case.get("resume")
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
