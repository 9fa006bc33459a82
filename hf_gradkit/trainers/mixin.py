"""What the trainers share: example columns, weights, logs and state around a parent's training step."""

import inspect
import logging
import os
from abc import abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor

from .._backends import check_sharding
from ..data.columns import INFO, ExampleCollator, ExampleInfo
from ..data.conversations import holds_conversations
from ..reporting.example_log import ExampleLog
from .checkpointing import CheckpointMixin
from .checkpoints import STATE_FILE
from .checks import check_labels, check_not_empty, check_processes, check_trained, check_world
from .hold_out import hold_out_rows
from .hub import HubMixin
from .monitors import build_monitors
from .offload import check_offload
from .options import ExampleOptions
from .weigher import ExampleWeigher

logger = logging.getLogger(__name__)


class ExampleWeightingMixin(CheckpointMixin, HubMixin):
    """Goes before a `transformers.Trainer` subclass. With every option off, the parent runs as if alone.

    A subclass overrides `compute_loss`, where it calls `_weigh_ahead` and `_weigh`, and states `_example_losses`.
    """

    _weigher: ExampleWeigher | None = None

    _rows_per_example = 1  # of a batch
    _drawn = False  # whether a step's batches were drawn in this run

    # The examples of each micro-batch of the step that is being trained; none without example columns.
    step_examples: list[ExampleInfo] = []  # noqa: RUF012

    def __init__(self, *positional, **keywords):
        given = inspect.signature(super().__init__).bind(*positional, **keywords).arguments
        args, train_dataset = given.get("args"), given.get("train_dataset")
        self._options = self._read_options(args)
        check_processes(args)
        if train_dataset is not None:
            check_not_empty(train_dataset)
        self._conversational = holds_conversations(train_dataset)
        train_dataset, evaluation = hold_out_rows(args, train_dataset, given.get("eval_dataset"))
        given |= {"train_dataset": train_dataset, "eval_dataset": evaluation}
        if self._options.active and train_dataset is not None:
            given["train_dataset"] = self._attach_columns(train_dataset, args)
        super().__init__(**given)
        check_sharding(self.accelerator)
        check_offload(self.accelerator)
        if self._options.active:
            self._check_combination()
            check_labels(self.train_dataset)
            self._weigher = self._make_weigher()
            self._step_totals: dict[str, Tensor] = {}
            self._ahead: list[Any] = []  # the step's batches, until they are weighed ahead
        for monitor in build_monitors(self.args, self):
            self.add_callback(monitor)

    def _make_weigher(self) -> ExampleWeigher:
        place = self.accelerator.process_index, self.accelerator.num_processes
        log = ExampleLog(self.args.output_dir, *place) if self._options.log else None
        return ExampleWeigher(self._options.method, self._options.comparison, self.accelerator, log)

    def _read_options(self, args: Any) -> ExampleOptions:
        return ExampleOptions.of(args)

    def _attach_columns(self, dataset: Any, args: Any) -> Any:
        if not isinstance(dataset, (Dataset, IterableDataset)):
            if self._options.columns.of_user or self._options.log:
                raise ValueError(
                    f"The training data is a {type(dataset).__name__}. Example columns and the example log need a "
                    "`datasets.Dataset` or `datasets.IterableDataset`: convert it, or leave the columns out."
                )
            return dataset
        if isinstance(dataset, IterableDataset) and args.dataloader_num_workers > 1:
            raise ValueError(
                f"`dataloader_num_workers` is {args.dataloader_num_workers}, but the rows of a streamed data set can "
                "be numbered by one worker only. Set it to 0 or 1 together with example weighting or columns."
            )
        if args.accelerator_config.dispatch_batches:
            raise ValueError(
                "`dispatch_batches` is True in `accelerator_config`: the main process would cut batches up, and the "
                "examples' columns cannot be cut. Set it to False together with example weighting or columns."
            )
        args.accelerator_config.dispatch_batches = False  # the default is True for streams
        return self._options.columns.attach(dataset)

    def _check_combination(self) -> None:
        """Refuse what is not tested together with example weighting, before anything trains."""
        check_world(self.accelerator, self.args.n_gpu)
        if self.compute_loss_func is not None:
            raise ValueError(
                "`compute_loss_func` returns one number for the batch, so examples cannot be weighted. Leave it out; "
                "`hf_gradkit.Trainer` takes `per_example_loss(outputs, inputs)` instead."
            )

    def _run_facts(self) -> dict[str, Any]:
        return super()._run_facts() | {"conversational": self._conversational}

    # ---- data: columns reach the batch ------------------------------------------------------------------------

    def _set_signature_columns_if_needed(self) -> None:
        unset = self._signature_columns is None
        super()._set_signature_columns_if_needed()
        if unset and self._options.active:
            self._model_columns = list(self._signature_columns)
            self._signature_columns = [*self._signature_columns, *self._options.columns.names]

    def _get_dataloader(self, dataset, description, batch_size, *positional, is_training=False, **keywords):
        collator = self.data_collator
        if self._options.active:
            self._set_signature_columns_if_needed()
            self.data_collator = ExampleCollator(
                collator,
                self._options.columns,
                training=is_training,
                keep=self._model_columns,
                rows_per_example=self._rows_per_example,
            )
        try:
            return super()._get_dataloader(
                dataset, description, batch_size, *positional, is_training=is_training, **keywords
            )
        finally:
            self.data_collator = collator

    # ---- the run ----------------------------------------------------------------------------------------------

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        if self._weigher is not None:
            self._start(max_steps, self._load_weighting_state(resume_from_checkpoint))
        return prepared

    def _start(self, max_steps: int, state: dict[str, Any] | None) -> None:
        """Begin a run of `max_steps` optimizer steps, fresh or from what `_training_state` returned."""
        self._weigher.start(max_steps, state)

    def _training_state(self) -> dict[str, Any]:
        """Return what a resumed run needs, as tensors and plain numbers. Runs on all ranks."""
        return self._weigher.state_dict()

    def _load_weighting_state(self, checkpoint: str | None) -> dict[str, Any] | None:
        if checkpoint is None:
            return None
        path = Path(checkpoint) / STATE_FILE
        if not path.exists():
            logger.warning(
                f"{checkpoint} holds no {STATE_FILE}: it was written without example weighting or columns. The "
                "running window, its average and the example log start anew."
            )
            return None
        return torch.load(path, weights_only=True)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self._weigher is not None:
            state = self._training_state()  # on all ranks: each writes its part of the example log
            if self.args.should_save:
                path = Path(output_dir) / STATE_FILE
                torch.save(state, path.with_suffix(".tmp"))
                os.replace(path.with_suffix(".tmp"), path)

    def _run_epoch(self, model, epoch, **keywords):
        if self._weigher is not None:
            self._weigher.begin_epoch(epoch)
        return super()._run_epoch(model=model, epoch=epoch, **keywords)

    def train(self, *positional, **keywords):
        if self._weigher is None:
            return super().train(*positional, **keywords)
        try:
            self._drawn = False
            result = super().train(*positional, **keywords)
            self._check_weighed()
            check_trained(self._weigher.tokens_seen, self.state.global_step)
        except BaseException:
            with suppress(OSError):  # a full disk: what ended the run is what is told
                self._write_logs()
            raise
        self._write_logs()
        return result

    def _write_logs(self) -> None:
        self._weigher.flush_log()
        # A run that failed before its first log has nothing to tell, and may stand where another one's state is.
        if self.args.should_save and self.state.log_history:
            self.save_state()

    def log(self, logs: dict[str, float], *positional, **keywords) -> None:
        # Evaluation logs have prefixed keys and no training figures in them.
        if self._weigher is not None and any(key in logs for key in ("loss", "train_loss")):
            logs.update(self._weigher.metrics.flush())
        super().log(logs, *positional, **keywords)

    # ---- one optimizer step -----------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, num_items_in_batch = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._weigher is not None and batches:
            self._check_weighed()
            self._drawn = True
            self.step_examples = [batch[INFO] for batch in batches]
            self._weigher.metrics.end_step()
            ended = len(batches) < num_batches or self.accelerator.gradient_state.end_of_dataloader
            self._weigher.epoch_ends = ended
            self._step_totals = self._count(batches) if self._divides_by_totals(batches[0]) else {}
            self._ahead = batches if self._options.weighs_ahead else []
        return batches, num_items_in_batch

    def _check_weighed(self) -> None:
        """Raise `RuntimeError` if a step was trained past us: by a subclass with a `compute_loss` of its own."""
        if self._drawn and self._weigher.tokens_seen is None:
            raise RuntimeError(
                f"{type(self).__name__} was asked for weights, columns or objectives, but a step was trained without "
                "them: its `compute_loss` does not call `super().compute_loss(...)`. Call it there, or leave them out."
            )

    def _divides_by_totals(self, batch: Any) -> bool:
        """Whether the loss of this batch is divided by something else than what the parent divides by."""
        return self._options.comparison.normalization == "sequence" or self._options.normalize_weights

    def _count(self, batches: list[Any]) -> dict[str, Tensor]:
        """Count what the loss of a whole optimizer step may be divided by, over the ranks that the parent counts."""
        totals = torch.zeros(3, device=self.args.device)
        for batch in batches:
            tokens = self._label_tokens(batch, batch[INFO]).to(totals)
            weight = batch[INFO].weight.to(totals)
            kept = (tokens > 0).to(totals)
            totals += torch.stack([kept.sum(), (weight * kept).sum(), (weight * tokens).sum()])
        if self.args.average_tokens_across_devices and self.accelerator.num_processes > 1:
            totals = self.accelerator.gather(totals[None]).sum(0)
        return dict(zip(("examples", "weighted_examples", "weighted_tokens"), totals, strict=True))

    def _weigh_ahead(self, model: Any) -> None:
        """Compute the multipliers of a whole optimizer step, by a forward without gradient (scope "step").

        Runs before the step's first training forward and leaves the random state as it was, so that dropout gives
        both the same losses; a resumed run has its random state back by then.
        """
        batches, self._ahead = self._ahead, []
        if not batches or self.state.global_step < self._weigher.warmup_steps:
            return
        device = self.args.device
        sums, tokens = [], []
        with (
            torch.random.fork_rng([device] if device.type != "cpu" else [], device_type=device.type),
            torch.no_grad(),
        ):
            for batch in batches:
                inputs = self._prepare_inputs({key: value for key, value in batch.items() if key != INFO})
                of_batch = self._example_losses(model, inputs, batch[INFO])
                sums.append(of_batch[0])
                tokens.append(of_batch[1])
        index = torch.cat([batch[INFO].index for batch in batches])
        multipliers = self._weigher.weigh_step(torch.cat(sums), torch.cat(tokens), index)
        for batch, part in zip(batches, multipliers.split([len(s) for s in sums]), strict=True):
            batch[INFO].multipliers = part

    @abstractmethod
    def _example_losses(self, model: Any, inputs: dict[str, Any], info: ExampleInfo) -> tuple[Tensor, Tensor]:
        """Return the summed cross-entropy and the label tokens of each example. Both (n,)"""

    @abstractmethod
    def _label_tokens(self, batch: Any, info: ExampleInfo) -> Tensor:
        """Count the label tokens of each example of a batch, before any forward. (n,)"""

    def _weigh(self, sums: Tensor, tokens: Tensor, info: ExampleInfo, num_items_in_batch: Any) -> Tensor:
        """Return what each example's summed loss is multiplied by, before the parent divides by its token count.

        In token mode u_i, in sequence mode u_i N / (T_i N_seq), u being method times column weight; with
        `normalize_weight_column` the counts are weighted ones.

        Args:
            sums: summed token cross-entropy of each example. (n,)
            tokens: label tokens of each example. (n,)
            num_items_in_batch: what the parent divides by, or None where it takes the micro-batch's mean.

        Returns:
            Multipliers on the device of `sums`. (n,)
        """
        u = self._weigher.weigh(sums, tokens, info, self.state.global_step).to(sums.device, sums.dtype)
        sequence = self._options.comparison.normalization == "sequence"
        if not sequence and not self._options.normalize_weights:
            return u
        weight = info.weight.to(u)
        if num_items_in_batch is None:  # the parent divides by this micro-batch's own count
            divisor = tokens.sum().clamp(min=1)
            totals = {
                "examples": (tokens > 0).sum(),
                "weighted_examples": weight[tokens > 0].sum(),
                "weighted_tokens": (weight * tokens).sum(),
            }
        else:
            divisor, totals = torch.as_tensor(num_items_in_batch, device=u.device), self._step_totals
        kind = ("weighted_" if self._options.normalize_weights else "") + ("examples" if sequence else "tokens")
        u = u * (divisor / totals[kind].clamp(min=1e-12)).to(u)
        return u / tokens.clamp(min=1) if sequence else u
