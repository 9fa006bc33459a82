"""Run in each of two processes: one step under FSDP2; what the hooks saw, averaged, and what is in `.grad`."""

import sys
from pathlib import Path

import torch
import trl

from helpers import make_rows, make_trainer, text_dataset
from hf_gradkit._backends import prepare_cpu_backends
from hf_gradkit.data.tiny import tiny_llama, train_tokenizer
from hf_gradkit.gradients.own import own_gradients
from launch import report_world


class Seeing(trl.SFTTrainer):
    """Keeps the gradients of a step."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.seen: dict[str, torch.Tensor] = {}

        def see(name, gradient):
            self.seen[name] = self.seen.get(name, 0) + gradient

        with own_gradients(model, see):
            loss = super().training_step(model, inputs, num_items_in_batch)
        self.grads = {name: p.grad.full_tensor() for name, p in model.named_parameters()}
        return loss


def main() -> None:
    prepare_cpu_backends()
    folder, *kinds = sys.argv[1:]
    tokenizer = train_tokenizer([row["text"] for row in make_rows(64)], vocab_size=300)
    for kind in kinds:
        model = tiny_llama(tokenizer, hidden_size=32)
        if kind == "tied":
            model.config.tie_word_embeddings = True
            model.tie_weights()
        data = text_dataset(16)
        options = {"max_steps": 1, "per_device_train_batch_size": 8}
        trainer = make_trainer(
            Seeing, trl.SFTConfig, tokenizer, Path(folder) / "out", data, {"model": model}, **options
        )
        trainer.train()
        seen = {name: trainer.accelerator.reduce(gradient, "mean") for name, gradient in trainer.seen.items()}
        if trainer.accelerator.is_main_process:
            torch.save(seen, f"{folder}/seen-{kind}.pt")
            torch.save(trainer.grads, f"{folder}/grads-{kind}.pt")
    report_world(trainer)


if __name__ == "__main__":
    main()
