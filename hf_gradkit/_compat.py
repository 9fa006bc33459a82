"""Every version check, and every private name of transformers and TRL that is relied on. Nowhere else."""

import importlib
import importlib.metadata
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

# The releases that the test suite ran against; pyproject.toml caps them.
TESTED = {"transformers": "5.23", "trl": "1.16"}

# Methods of transformers' Trainer around checkpoints, in all trainers of ours.
CHECKPOINT_SEAMS = {
    "train": "resumes from whole checkpoints only, and ends with the example log and the trainer's state written",
    "_save_checkpoint": "writes one checkpoint, on all ranks; what an earlier run left in its place goes first",
    "_save_rng_state": "writes the last part that every rank has in a checkpoint, just before trainer_state.json",
    "_run_epoch": "trains an epoch, whose number it is told, and at least one step of it",
    "save_model": "writes a model: of a checkpoint, or with `_internal_call` False or no folder for good",
}
# Methods of transformers' Trainer around the Hub, in all trainers of ours; training calls them where it pushes.
HUB_SEAMS = {
    "init_hf_repo": "makes the repository, before the training",
    "create_model_card": "writes the model's page; TRL's trainers call it with each checkpoint",
    "push_to_hub": "pushes the trained model",
    "_push_from_checkpoint": "pushes while training, in the background, as `hub_strategy` says; failures go unheard",
}
# Methods of transformers' Trainer that ours override or call, and why. tests/test_seams.py checks that each exists in
# the parent and that each override really runs in a training step.
TRAINER_SEAMS = {
    "_set_signature_columns_if_needed": "columns that accompany an example stay in the data set",
    "_get_dataloader": "says whether a loader is for training, so that only training batches carry example columns",
    "_prepare_for_training": "runs once per `train()`, with the checkpoint to resume from",
    "_save_optimizer_and_scheduler": "runs on all ranks while a checkpoint's training state is written",
    "get_batch_samples": "has all micro-batches of an optimizer step at hand",
    "compute_loss": "has the model's outputs at hand",
    "log": "adds figures to the logs",
    **CHECKPOINT_SEAMS,
}
# Of transformers' Trainer in ours for plain transformers, besides.
PLAIN_SEAMS = {
    "training_step": "is where a loss is divided by the accumulation steps, or not",
    "prediction_step": "evaluates, also a loss of the user's own",
}
# Of TRL's SFTTrainer besides.
SFT_SEAMS = {
    "_prepare_dataset": "packs the data set, and drops the columns doing so",
    "_get_train_sampler": "draws the examples of an epoch",
}
# Of TRL's RewardTrainer.
REWARD_SEAMS = {"_prepare_dataset": "drops the pairs that are too long, without a word", **CHECKPOINT_SEAMS}

# Of TRL's DPOTrainer besides: attributes that its loss reads, and the public method that gives the reference.
DPO_SEAMS: dict[str, str] = {}
DPO_LOSS_ATTRIBUTES = ("loss_types", "loss_weights", "precompute_ref_logps", "use_weighting")
DPO_LOSS_TYPES = (
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
)


@contextmanager
def dpo_loss(trainer: Any, loss_types: list[str], loss_weights: list[float], weighted: bool) -> Iterator[None]:
    """Let TRL's DPOTrainer compute these terms only, on reference log-probabilities that are in the batch.

    Args:
        trainer: the trainer.
        loss_types: TRL's names of the terms; none is allowed, and TRL then only logs.
        loss_weights: what multiplies each.
        weighted: use the weights that TRL reads off `outputs.log_sum_sq_probs` (its WPO path).
    """
    terms = {"loss_types": loss_types, "loss_weights": loss_weights, "precompute_ref_logps": True}
    terms["use_weighting"] = weighted or trainer.use_weighting
    before = {name: getattr(trainer, name) for name in DPO_LOSS_ATTRIBUTES}
    try:
        for name, value in terms.items():
            setattr(trainer, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(trainer, name, value)


def encode_pair_weights(outputs: Any, token_logps: Tensor, mask: Tensor, weights: Tensor, wpo: bool) -> None:
    """Put weights of pairs into a policy's outputs, where TRL's loss reads the weights of WPO.

    TRL multiplies the loss of a pair by `exp(mean(log_probs - log_sum_sq_probs))` of its chosen and of its rejected
    answer, the mean being over the answer's tokens: with the chosen answer's `log_sum_sq_probs` lowered by ln(weight)
    the product is the weight, exactly 1 and exactly 0 included, times WPO's own if that is on.

    Args:
        outputs: the policy's; `log_sum_sq_probs` is set.
        token_logps: the policy's log-probabilities of tokens, detached. (2n, T)
        mask: 1 on the answers' tokens. (2n, T)
        weights: of the pairs, at least 0. (n,)
        wpo: keep WPO's own weights.
    """
    base = outputs.log_sum_sq_probs if wpo else outputs.log_probs.detach()
    logs = torch.cat([weights.log(), torch.zeros_like(weights)]).to(base)[:, None]  # (2n, 1)
    lowered = base.clone()
    lowered[:, -mask.shape[1] :] = torch.where(mask.bool(), base[:, -mask.shape[1] :] - logs, token_logps.to(base))
    outputs.log_sum_sq_probs = lowered


# The autograd function behind TRL's fused head, where it is looked up on each call. Recording gradients puts another
# one there for the time being, which calls it for its forward.
FUSED_HEAD = ("trl.trainer.utils", "_ChunkedLogProbFunction")


_heads: list[Any] = []  # what stands in for TRL's fused head, the first nearest to it


@contextmanager
def fused_head(replace: Any) -> Iterator[None]:
    """Let TRL's fused head apply `replace(what it applied before)`; several may, and end in any order."""
    module = importlib.import_module(FUSED_HEAD[0])
    original = getattr(module, FUSED_HEAD[1])
    original = getattr(original, "_hf_gradkit_original", original)

    def put() -> None:
        found = original
        for each in _heads:
            found = each(found)
            found._hf_gradkit_original = original
        setattr(module, FUSED_HEAD[1], found)

    _heads.append(replace)
    put()
    try:
        yield
    finally:
        _heads.remove(replace)
        put()


def prepare_sft_dataset(
    dataset: Any,
    tokenizer: Any,
    text_field: str,
    completion_only: bool,
    assistant_only: bool,
    chat_template: str | None,
) -> Any:
    """Tokenise and label as TRL's SFTTrainer does, without a trainer; nothing is cut, dropped, packed or shuffled.

    Args:
        dataset: the examples.
        tokenizer: with an end token, and a chat template for conversations.
        text_field: column of plain text.
        completion_only: label completions only.
        assistant_only: label the assistant's turns only.
        chat_template: used instead of the tokenizer's own, unless None.
    """
    trainer_class = importlib.import_module("trl").SFTTrainer  # not at the top: it takes seconds
    trainer = SimpleNamespace(_tokenizer=tokenizer, completion_only_loss=completion_only, chat_template=chat_template)
    args = SimpleNamespace(
        dataset_num_proc=None,
        dataset_text_field=text_field,
        assistant_only_loss=assistant_only,
        max_length=None,
        shuffle_dataset=False,
    )
    return trainer_class._prepare_dataset(trainer, dataset, tokenizer, args, False, None, "the")


# Where `from_pretrained` looks whether to partition a model, and the environment variable that tells it to leave one
# empty under FSDP.
DEEPSPEED_CONFIG = ("transformers.integrations.deepspeed", "_hf_deepspeed_config_weak_ref")
FSDP_EMPTY = "FSDP_CPU_RAM_EFFICIENT_LOADING"


@contextmanager
def whole_models() -> Iterator[None]:
    """Let `from_pretrained` load whole models on every process, whatever the model that is trained is loaded as.

    Under ZeRO-3 it would partition them, and under FSDP leave them empty on all processes but one until somebody
    shards them. A model that only scores is never prepared for training, so it would be unusable, or wrong.
    """
    module = importlib.import_module(DEEPSPEED_CONFIG[0])
    config, empty = getattr(module, DEEPSPEED_CONFIG[1]), os.environ.pop(FSDP_EMPTY, None)
    setattr(module, DEEPSPEED_CONFIG[1], None)
    try:
        yield
    finally:
        setattr(module, DEEPSPEED_CONFIG[1], config)
        if empty is not None:
            os.environ[FSDP_EMPTY] = empty


def pickle_function(function: Any) -> bytes:
    """Return a function as `datasets` pickles one to hash it: equal for equal functions, in every process."""
    from datasets.utils._dill import dumps

    return dumps(function)


def parts_of_stream(dataset: Any) -> int:
    """Return into how many parts `split_dataset_by_node` split a stream of `datasets`; 1 where nobody did."""
    split = dataset._distributed
    return 1 if split is None else split.world_size


def is_decoded(feature: Any) -> bool:
    """Return whether `datasets` decodes what a column holds, as it does images and sounds."""
    from datasets.features.features import require_decoding

    return require_decoding(feature, ignore_decode_attribute=True)


def block_names(model: Any) -> frozenset[str]:
    """Return the names of the classes of a transformers model's blocks, each of which is kept in one piece."""
    return frozenset(model._no_split_modules or ())


def shifts_labels(trainer: Any) -> bool:
    """Return whether position t of the model's logits is scored against label t + 1, as in causal language models."""
    return trainer._loss_shifts_labels


def has_vision_data(trainer: Any) -> bool:
    """Return whether TRL's trainer found images in the data set."""
    return trainer._is_vision_dataset


def versions(names: tuple[str, ...]) -> dict[str, str | None]:
    """Return the installed version of each distribution, None where it is missing."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def untested_versions() -> list[str]:
    """Return a sentence for each library whose installed release is not the one that was tested."""
    return [
        f"{name} {version} is installed; this release of hf-gradkit was tested with {name} {TESTED[name]}."
        for name, version in versions(tuple(TESTED)).items()
        if version is not None and not version.startswith(TESTED[name] + ".")
    ]
