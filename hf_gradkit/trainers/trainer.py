"""Trainer: transformers', with example weights."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import transformers
from torch import Tensor

from .. import _compat
from ..data.columns import INFO, ExampleInfo
from .mixin import ExampleWeightingMixin
from .options import ExampleOptions
from .per_example import label_tokens, position_segments, spread_to_positions, sum_by_example, token_cross_entropy

logger = transformers.utils.logging.get_logger(__name__)


class Trainer(ExampleWeightingMixin, transformers.Trainer):
    """A drop-in for [`transformers.Trainer`] that can weight examples by their loss and by columns of the data.

    With every option of [`TrainingArguments`] that is ours left at its default, or with transformers' own arguments,
    this is transformers' trainer. Otherwise it weights models that return logits for labels: causal language models,
    token and sequence classification by cross-entropy. For any other model, pass `per_example_loss`, or let the model
    return a loss of shape (n,) without being given `labels`.

    The loss is a mean over the whole optimizer step whatever the model. For models that take loss keywords and do not
    use them (in transformers 5.23 the Llama classifier, for one), transformers' own trainer adds the micro-batches'
    means up instead, so that its loss grows with `gradient_accumulation_steps`; with weighting on, ours does not.

    Args:
        per_example_loss (`Callable`, *optional*): `per_example_loss(outputs, inputs)` returns the differentiable loss
            of each example, (n,), in the batch's order. The loss is then their weighted mean over the optimizer step.
        *positional, **keywords: as for [`transformers.Trainer`].

    Raises:
        ValueError: for options that are wrong or do not go together, columns that are missing, bad weights, an empty
            or wholly masked data set; before anything trains.
        NonFiniteLossError: when an example's loss is not finite; before the optimizer steps.
    """

    def __init__(self, *positional, per_example_loss: Callable[[Any, dict], Tensor] | None = None, **keywords):
        self.per_example_loss = per_example_loss
        super().__init__(*positional, **keywords)

    def _read_options(self, args: Any) -> ExampleOptions:
        options = super()._read_options(args)
        return replace(options, own_loss=self.per_example_loss is not None)

    def _check_combination(self) -> None:
        super()._check_combination()
        config = getattr(self.model, "config", None)
        if getattr(config, "is_encoder_decoder", False) and self.per_example_loss is None:
            raise ValueError(
                f"{type(self.model).__name__} is an encoder-decoder model, which makes its decoder's inputs from the "
                "labels; example weighting takes the labels away. Pass `per_example_loss(outputs, inputs)`, or set "
                "weighting='none' and leave out the example columns."
            )

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        if self.per_example_loss is None:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs)
            loss = self._own_losses(outputs, inputs).mean()
        if prediction_loss_only:
            return loss, None, None
        return loss, getattr(outputs, "logits", None), inputs.get("labels")

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        info = inputs.pop(INFO, None)
        if info is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self._weigh_ahead(model)
        if self._has_own_loss(inputs):
            return self._own_loss(model, inputs, info, return_outputs)

        def weighted(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
            losses, mask, segments = self._token_losses(outputs, labels, info)
            n = len(info)
            sums, tokens = sum_by_example(losses.detach(), segments, n), sum_by_example(mask.long(), segments, n)
            weights = spread_to_positions(self._weigh(sums, tokens, info, num_items_in_batch), segments)
            divisor = mask.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
            return (weights * losses).sum() / divisor

        # The parent takes the labels away from the model, calls this, and scales the result as it does any loss.
        self.compute_loss_func = weighted
        try:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        finally:
            self.compute_loss_func = None

    def training_step(self, model, inputs, num_items_in_batch=None):
        if self._weigher is not None and self._has_own_loss(inputs):
            # A loss of the user's own is divided by the examples of the whole step, and by nothing after that.
            self.loss_is_scaled_for_ga = True
        return super().training_step(model, inputs, num_items_in_batch)

    def _divides_by_totals(self, batch: Any) -> bool:
        return self._has_own_loss(batch) or super()._divides_by_totals(batch)

    def _has_own_loss(self, inputs: Any) -> bool:
        return self.per_example_loss is not None or "labels" not in inputs

    def _own_loss(self, model, inputs, info: ExampleInfo, return_outputs: bool):
        outputs = model(**inputs)
        losses = self._own_losses(outputs, inputs)
        u = self._weigher.weigh(losses, torch.ones_like(losses), info, self.state.global_step).to(losses)
        count = self._step_totals["weighted_examples" if self._options.normalize_weights else "examples"]
        # The count is over all ranks when tokens are averaged across devices, and DDP averages gradients over them.
        ranks = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        loss = ranks * (u * losses).sum() / count.clamp(min=1e-12)
        return (loss, outputs) if return_outputs else loss

    def _own_losses(self, outputs: Any, inputs: Any) -> Tensor:
        if self.per_example_loss is not None:
            losses, source = self.per_example_loss(outputs, inputs), "`per_example_loss` returned"
        else:
            losses, source = getattr(outputs, "loss", None), "There are no `labels` in the batch, and the model gave"
        if not isinstance(losses, Tensor) or losses.dim() != 1:
            shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise ValueError(
                f"{source} {shape} as the loss, where one value an example, (n,), is needed to weight examples. Pass "
                "`per_example_loss(outputs, inputs)` to the trainer."
            )
        return losses

    def _token_losses(self, outputs: Any, labels: Tensor, info: ExampleInfo) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the cross-entropy and the mask of each position, (B, T), and the positions' segments."""
        logits = outputs["logits"] if isinstance(outputs, dict) and "logits" in outputs else None
        fits = isinstance(logits, Tensor) and not labels.is_floating_point() and logits.dim() == labels.dim() + 1
        problem = getattr(self.model.config, "problem_type", None) if hasattr(self.model, "config") else None
        if not fits or logits.shape[-1] == 1 or problem in ("regression", "multi_label_classification"):
            raise ValueError(
                "The model's outputs have no logits over classes for these labels, so their cross-entropy cannot be "
                "told apart by example. Pass `per_example_loss(outputs, inputs)` to the trainer."
            )
        if labels.dim() == 1 and self.model_accepts_loss_kwargs and self.args.gradient_accumulation_steps > 1:
            logger.warning_once(
                "With weights or columns on, this classifier's loss is the mean over the optimizer step. Without, "
                "transformers adds up the means of the micro-batches, which is `gradient_accumulation_steps` times as "
                "much: compare runs that both have them, or both have not."
            )
        shifted = labels.dim() == 2 and _compat.shifts_labels(self)
        losses, mask = token_cross_entropy(logits, labels, shifted)
        return losses, mask, position_segments(info.segments, shifted, losses.device)

    def _example_losses(self, model: Any, inputs: dict[str, Any], info: ExampleInfo) -> tuple[Tensor, Tensor]:
        if self._has_own_loss(inputs):
            losses = self._own_losses(model(**inputs), inputs)
            return losses, torch.ones_like(losses)
        labels = inputs.pop("labels")
        losses, mask, segments = self._token_losses(model(**inputs), labels, info)
        n = len(info)
        return sum_by_example(losses, segments, n), sum_by_example(mask.long(), segments, n)

    def _label_tokens(self, batch: Any, info: ExampleInfo) -> Tensor:
        if self._has_own_loss(batch):
            return torch.ones(len(info))
        labels = batch["labels"]
        shifted = labels.dim() == 2 and _compat.shifts_labels(self)
        return label_tokens(labels, info.segments, len(info), shifted)
