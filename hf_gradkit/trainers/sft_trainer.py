"""SFTTrainer: TRL's, with example weights."""

import copy
from typing import Any

import torch
import trl
from torch import Tensor

from .. import _compat
from ..data.columns import INDEX, INFO, ExampleInfo, column_names
from ..data.packing import pack_with_columns
from .config import SFTConfig, TrainingArguments
from .mixin import ExampleWeightingMixin
from .per_example import label_tokens, position_segments, spread_to_positions, sum_by_example
from .resampling import ResamplingMixin


class SFTTrainer(ResamplingMixin, ExampleWeightingMixin, trl.SFTTrainer):
    """A drop-in for [`trl.SFTTrainer`] that can weight examples by their loss and by columns of the data.

    With every option of [`SFTConfig`] that is ours left at its default, or with TRL's own configuration, this is
    TRL's trainer. Otherwise the losses of single examples come from the log-probabilities that TRL's fused head
    computes anyway - no logits, no second forward (except scope "step") - and the loss that TRL computes is weighted
    by example, whatever its `loss_type`: examples are compared by cross-entropy, and trained on that loss.

    Example:

    ```python
    from hf_gradkit import SFTConfig, SFTTrainer

    trainer = SFTTrainer(
        model="Qwen/Qwen3-0.6B",
        args=SFTConfig("out", weighting="linupper"),
        train_dataset=dataset,
    )
    trainer.train()
    ```

    Raises:
        ValueError: for options that are wrong or do not go together, columns that are missing, bad weights, an empty
            or wholly masked data set; before anything trains.
        NonFiniteLossError: when an example's loss is not finite; before the optimizer steps.
    """

    def __init__(self, model, args=None, *positional, **keywords):
        if isinstance(args, TrainingArguments):  # ours for plain transformers: TRL would not know its fields
            args = SFTConfig(**{**args.to_dict(), "hub_token": args.hub_token})
        super().__init__(model, args, *positional, **keywords)

    def _check_combination(self) -> None:
        super()._check_combination()
        if _compat.has_vision_data(self):
            raise ValueError(
                "The training data has images, which example weighting and columns do not support yet. Set "
                "weighting='none' and leave out the example columns to train as with TRL."
            )

    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        # Only the training data is numbered; an evaluation set may be named "train" as well.
        if not (self._options.active and packing and INDEX in column_names(dataset)):
            return super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)
        if args.max_length is None:
            raise ValueError("When packing is enabled, `max_length` can't be `None`.")
        # Let TRL tokenise and label, without cutting to length, shuffling or packing; then pack with the columns.
        unpacked = copy.copy(args)
        unpacked.max_length, unpacked.shuffle_dataset = None, False
        dataset = super()._prepare_dataset(dataset, processing_class, unpacked, False, formatting_func, dataset_name)
        return pack_with_columns(
            dataset,
            self._options.columns,
            seq_length=args.max_length,
            strategy=args.packing_strategy,
            shuffle_seed=args.seed if args.shuffle_dataset else None,
            num_proc=args.dataset_num_proc,
        )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        info = inputs.pop(INFO, None)
        if info is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self._weigh_ahead(model)
        tap = _LogProbsTap(model)
        result = super().compute_loss(tap, inputs, return_outputs, num_items_in_batch)
        loss, outputs = result if return_outputs else (result, None)

        sums, tokens, segments = _by_example(tap.log_probs, tap.label_mask, info)
        multipliers = self._weigh(sums, tokens, info, num_items_in_batch)
        weights = spread_to_positions(multipliers.to(tap.log_probs.dtype), segments)  # (B, T)
        # What TRL multiplies each log-probability by - the divisor, the number of processes, the loss type's own
        # factor - is read off its loss and not computed again.
        (coefficients,) = torch.autograd.grad(loss, tap.leaf, retain_graph=True)
        loss = loss + (coefficients * (weights * tap.log_probs - tap.leaf.detach())).sum()
        return (loss, outputs) if return_outputs else loss

    def _example_losses(self, model: Any, inputs: dict[str, Any], info: ExampleInfo) -> tuple[Tensor, Tensor]:
        outputs = model(**{**inputs, "use_cache": False}, fused_lm_head=True)
        return _by_example(outputs.log_probs, outputs.label_mask, info)[:2]

    def _label_tokens(self, batch: Any, info: ExampleInfo) -> Tensor:
        return label_tokens(batch["labels"], info.segments, len(info), shifted=True)


class _LogProbsTap:
    """Stands in for the model while TRL computes its loss: TRL gets the log-probabilities cut off from the model.

    The gradient of TRL's loss at that cut is the coefficient of each token's log-probability.
    """

    def __init__(self, model: Any):
        self._model = model

    def __call__(self, *positional, **keywords):
        outputs = self._model(*positional, **keywords)
        if "log_probs" in outputs and outputs.log_probs.requires_grad:
            self.log_probs = outputs.log_probs  # (B, T), zero where there is no label
            self.label_mask = outputs.label_mask  # (B, T)
            self.leaf = outputs.log_probs.detach().requires_grad_()
            outputs.log_probs = self.leaf
        return outputs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _by_example(log_probs: Tensor, mask: Tensor, info: ExampleInfo) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the summed cross-entropy and the label tokens of each example, (n,), and the positions' segments (T,)."""
    segments = position_segments(info.segments, True, log_probs.device)
    if segments is not None and len(segments) != log_probs.shape[1]:
        raise ValueError(
            f"The model scored {log_probs.shape[1]} positions of {len(segments)} in a packed row, as with prompt "
            "learning. Use packing=False and padding_free=False together with example weighting or columns."
        )
    n = len(info)
    losses = -log_probs.detach().to(torch.promote_types(log_probs.dtype, torch.float32))
    return sum_by_example(losses, segments, n), sum_by_example(mask.long(), segments, n), segments
