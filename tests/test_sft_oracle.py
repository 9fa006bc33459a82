"""The weighted loss of SFTTrainer and its gradient against autograd one example at a time, in every form of data."""

import copy

import pytest
import torch

import hf_gradkit
from helpers import dataset_of, make_trainer
from hf_gradkit.data.columns import INFO
from hf_gradkit.weighting import loss_weights

FORMS = {
    "text": (("text",), {}),
    "prompt and completion": (("prompt", "completion"), {}),
    "assistant only": (("messages",), {"assistant_only_loss": True}),
    "dft": (("text",), {"loss_type": "dft"}),
    "padding free": (("text",), {"padding_free": True, "max_length": None}),
    "padding free, padded to a multiple": (
        ("text",),
        {"padding_free": True, "max_length": None, "pad_to_multiple_of": 16},
    ),
    "packed": (("text",), {"packing": True, "max_length": 64, "per_device_train_batch_size": 2}),
    "packed and split": (
        ("text",),
        {"packing": True, "packing_strategy": "bfd_split", "max_length": 24, "per_device_train_batch_size": 2},
    ),
}


def gradient_of(trainer, batches, num_items):
    """Return the gradient that the trainer's own training step leaves in float64."""
    trainer.model.zero_grad()
    trainer.current_gradient_accumulation_steps = len(batches)
    for batch in batches:
        trainer.training_step(trainer.model, dict(batch), num_items)
    return torch.cat([p.grad.flatten().clone() for p in trainer.model.parameters() if p.grad is not None])


def documents_of(batch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the tokens and labels of each example of a batch, whatever its form."""
    info, documents = batch[INFO], []
    for i in range(len(info)):
        if info.segments is None:
            kept = batch["attention_mask"][i].bool()
            documents.append((batch["input_ids"][i][kept], batch["labels"][i][kept]))
        else:
            kept = info.segments == i
            labels = batch["labels"][0][kept].clone()
            documents.append((batch["input_ids"][0][kept], labels))
    return documents


def oracle(model, documents, multipliers, divisor, loss_type, sequence):
    """Weighted loss and its gradient, one example at a time."""
    model.zero_grad()
    total = 0.0
    for (tokens, labels), u in zip(documents, multipliers, strict=True):
        logits = model(input_ids=tokens[None]).logits[0, :-1]
        log_probs = logits.log_softmax(-1).gather(1, tokens[1:, None])[:, 0]
        kept = labels[1:] != -100
        losses = -log_probs[kept]
        if loss_type == "dft":
            losses = losses * log_probs[kept].exp().detach()
        loss = u * (losses.mean() if sequence else losses.sum()) / divisor
        loss.backward()
        total += loss.item()
    return total, torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("normalization", ["token", "sequence"])
@pytest.mark.parametrize("form", FORMS)
def test_loss_and_gradient_agree_with_one_example_at_a_time(form, normalization, tokenizer, tmp_path):
    columns, options = FORMS[form]
    trainer = make_trainer(
        hf_gradkit.SFTTrainer,
        hf_gradkit.SFTConfig,
        tokenizer,
        tmp_path,
        dataset_of(24, *columns, "weight"),
        weighting="linupper",
        weighting_kwargs={
            "scope": "micro_batch",
            "temperature": 0.4,
            "warmup_ratio": 0.0,
            "normalization": normalization,
        },
        weight_column="weight",
        **options,
    )
    trainer.model.double()
    model = copy.deepcopy(trainer.model)
    model.forward = type(model).forward.__get__(model)  # without TRL's fused head: logits, the long way
    batches, num_items = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 2, torch.device("cpu"))
    ours = gradient_of(trainer, batches, num_items)

    gradients, losses, n_examples = 0.0, 0.0, sum(len(batch[INFO]) for batch in batches)
    for batch in batches:
        documents = documents_of(batch)
        with torch.no_grad():
            means = torch.tensor(
                [oracle_loss(model, tokens, labels) for tokens, labels in documents], dtype=torch.float64
            )
        multipliers = loss_weights(means, "linupper", 0.4) * batch[INFO].weight
        sequence = normalization == "sequence"
        value, gradient = oracle(
            model,
            documents,
            multipliers,
            n_examples if sequence else num_items.item(),
            trainer.args.loss_type,
            sequence,
        )
        losses, gradients = losses + value, gradients + gradient
    assert len({round(m, 3) for m in multipliers.tolist()}) > 1  # the weights were not all alike
    # The fused head gives float32 losses: these are about .1 apart, so that their rounding moves weights by 1e-5.
    assert (ours - gradients).norm() < 1e-4 * gradients.norm()


def oracle_loss(model, tokens, labels) -> float:
    logits = model(input_ids=tokens[None]).logits[0, :-1]
    kept = labels[1:] != -100
    return torch.nn.functional.cross_entropy(logits[kept], tokens[1:][kept]).item()
