"""WorkerConsistencyCallback: whether data-parallel workers train on the same thing, before averaging hides it."""

import logging
from typing import Any

from accelerate.utils import gather, gather_object
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback

from .._backends import SHARDED, backend, check_backend, check_state
from .._text import check_whole_number
from ..gradients.parameters import inside_compiled
from .figures_log import FiguresLog
from .given_data import given_data, number_of_rows, split_twice, steps_of_epoch
from .gradient_monitor import close_all, leave_on, take_off
from .gradient_statistics import has_pairs
from .shard_check import ShardCheck
from .worker_agreement import WorkerAgreement, packed
from .worker_gradients import HookedGradients, OwnGradients
from .worker_inputs import WorkerInputs
from .worker_verdicts import LEAST

logger = logging.getLogger(__name__)

FIGURES = "The figures of WorkerConsistencyCallback"


class WorkerConsistencyCallback(TrainerCallback):
    """Watches for silent disagreement between data-parallel workers (arXiv 2602.14462), on any trainer.

        trainer.add_callback(WorkerConsistencyCallback(trainer=trainer))

    Averaging hides what single workers do: with the wrong shards the mean loss looks as smooth as ever. Figures, each
    with the value that a healthy run has, so that the ratio is what to judge:

    - `consistency/loss_dispersion`, `/loss_dispersion_expected`, `/loss_dispersion_ratio`: of the workers' losses;
    - `consistency/grad_norm_dispersion`, `/grad_norm_dispersion_expected`, `/grad_norm_dispersion_ratio`;
    - `consistency/direction`, `/direction_expected`, `/direction_ratio`: mean cosine of the workers' gradients; the
      expected one is b / (b + noise scale) for b examples a worker;
    - `consistency/repeated`: examples of the epoch that several workers have seen, if more than the data explain;
    - `consistency/missing`, at the end of an epoch, where some are: rows of the data that nobody saw.

    What is expected comes from what varies within workers: their micro-batches or single examples for the direction,
    the change of each worker's own figure over time for the dispersions, less what all have in common where their
    examples differ. While it is unknown it is left out. Ratios are over the last `window` monitored steps.

    Gradients are read in DDP's communication hook, which leaves the reduction as it is: norms exactly, the mean cosine
    exactly from norms, cosines of single pairs of workers from a sketch (in the file). Where a hook is registered
    already, without `trainer`, and under FSDP2 and DeepSpeed they are read by hooks on the parameters, as the backward
    pass has them: norms exactly (with several micro-batches a step from the sketch), cosines from the sketch. One
    warning says what seems wrong, and its likely cause.

    Args:
        monitor_steps: watch every so many optimizer steps; the examples of all steps are compared.
        trainer: the trainer: for its losses, DDP's hook, trackers.
        window: monitored steps that ratios are over, at least 16: as many as it takes to call a worker different.
        probes: size of the sketch.
        pairs: whether batches are [chosen; rejected]; None asks the trainer.

    Raises:
        ValueError: for options out of their domain, gradients that are scaled (fp16), a parallelism configuration, and
            the first version of FSDP.
    """

    def __init__(
        self,
        monitor_steps: int = 1,
        trainer: Any = None,
        window: int = 50,
        probes: int = 256,
        pairs: bool | None = None,
    ):
        for name, value, least in (
            ("monitor_steps", monitor_steps, 1),
            ("window", window, LEAST),
            ("probes", probes, 2),
        ):
            check_whole_number(name, value, least)
        self.monitor_steps, self.window, self.probes = monitor_steps, window, probes
        self._trainer, self._pairs = trainer, pairs
        self.figures = FiguresLog("worker_consistency", trainer)
        self._idle = self._whole_epoch = True
        self._source: Any = None
        self._inputs: WorkerInputs | None = None
        self._model: Any = None
        self._warned: set[str] = set()

    # ---- the run ------------------------------------------------------------------------------------------------

    def on_train_begin(self, args, state, control, model=None, train_dataloader=None, **kwargs):
        close_all(model)  # a run that was interrupted may have left something, another trainer's even
        self._close()
        self._warned = set()
        self._idle, self._is_main = args.world_size == 1, state.is_world_process_zero
        if self._idle:
            logger.warning("One process trains alone, so WorkerConsistencyCallback has no workers to compare.")
            return
        check_backend(backend(), FIGURES, "leave it out", tested=SHARDED)
        check_state(FIGURES, "leave the callback out")
        if args.fp16:
            raise ValueError("`fp16` scales the loss, and with it the gradients' norms. Use bf16 with the monitor.")
        if self._pairs is None:
            self._pairs = has_pairs(self._trainer)
        self._source = self._find_source(args, model)
        self._shards = ShardCheck(args.world_size)
        self._given: list[list[int]] = []  # hashes of this worker's examples, steps that were not compared yet
        self._rows = number_of_rows(train_dataloader)
        epoch = steps_of_epoch(train_dataloader, args.gradient_accumulation_steps, self.monitor_steps)
        self._agreement = WorkerAgreement(self.window, epoch)
        self._whole_epoch = True
        if state.global_step:
            self._whole_epoch = abs(state.epoch - round(state.epoch)) < 1e-6
            self._say_resumed()
        self.figures.start(args.output_dir, state.global_step, state.is_world_process_zero)
        split = split_twice(gather_object([given_data(train_dataloader)]))
        if split is not None:
            self._warn("split", split)

    def _find_source(self, args: Any, model: Any) -> HookedGradients | OwnGradients:
        outermost = getattr(self._trainer, "model_wrapped", None)
        wrapped = inside_compiled(outermost)
        compiled = args.torch_compile or wrapped is not outermost
        if isinstance(wrapped, DistributedDataParallel):
            if isinstance(self._source, HookedGradients) and self._source.of(wrapped):
                self._source.begin_run()  # another `train()` of the same model
                return self._source
            try:
                return HookedGradients(wrapped, self.probes, self._pairs, compiled)
            except RuntimeError:  # DDP takes one hook, and somebody else's is there
                logger.info("DDP has a communication hook already: workers' gradients are read on the parameters.")
        if getattr(args, "gradient_balancing", None) == "pair":
            raise ValueError(
                "gradient_balancing='pair' runs a backward pass of its own, which WorkerConsistencyCallback can only "
                "tell from the one that trains in DDP's communication hook. Leave out the hook of your own, or the "
                "callback."
            )
        return OwnGradients(model, self.probes, self._pairs, compiled)

    def on_epoch_begin(self, args, state, control, model=None, **kwargs):
        if self._idle:
            return
        if self._inputs is None:  # not before: another monitor's `on_train_begin` would take it off
            self._inputs = WorkerInputs(model, self._trainer, self._pairs)
            self._model = model
            leave_on(model, self)
        self._shards.begin_epoch()
        self._given = []

    def _say_resumed(self) -> None:
        if self._is_main:
            logger.warning(
                "A resumed run: the windows of WorkerConsistencyCallback start anew, so its ratios differ from an "
                "uninterrupted run's."
                + ("" if self._whole_epoch else " Rows of this epoch from before the checkpoint are not compared.")
            )

    def on_step_begin(self, args, state, control, **kwargs):
        if self._idle:
            return
        self._inputs.begin()
        self._watching = state.global_step % self.monitor_steps == 0
        if self._watching:
            self._source.begin(args)

    def on_substep_end(self, args, state, control, **kwargs):
        self._micro_batch(last=False)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self._micro_batch(last=True)

    def _micro_batch(self, last: bool) -> None:
        if not self._idle and self._watching:
            try:
                self._source.micro_batch(self._inputs.examples_of_last, last)
            except BaseException:
                close_all(self._model)
                raise

    def on_step_end(self, args, state, control, **kwargs):
        if self._idle:
            return
        self._compare_examples(state.global_step)
        if self._watching:
            self._watching = False
            self._report(state.global_step)

    def on_epoch_end(self, args, state, control, **kwargs):
        ended_early = abs(state.epoch - round(state.epoch)) > 1e-6
        whole, self._whole_epoch = self._whole_epoch, True
        if self._idle or self._rows is None or ended_early or not whole:
            return
        finding = self._shards.finding()  # before the last rows, which are filled up
        self._bring_together(self._given)
        self._given = []
        if finding is not None:
            missing = max(0, self._rows - self._shards.distinct - finding.within)
            self.figures.add(state.global_step, {"consistency/missing": float(missing)}, {})
            return
        lack = self._shards.lack(self._rows)
        if lack is not None:
            self.figures.add(state.global_step, {"consistency/missing": float(lack.rows)}, {})
            self._warn("missing", lack.cause)

    def on_log(self, args, state, control, **kwargs):
        if not self._idle:
            self.figures.after_log(state.log_history)

    def on_train_end(self, args, state, control, **kwargs):
        self._close()
        unknown = None if self._idle else self._agreement.unknown_direction()
        if unknown is not None and self._is_main:
            logger.warning(unknown)

    def stop_watching(self) -> None:
        """Take everything off model and trainer, as after a run that was interrupted in the middle of a step."""
        self._close()

    def _close(self) -> None:
        self._watching = False
        if self._source is not None:
            self._source.close()
        if self._inputs is not None:
            self._inputs.close()
            self._inputs = None
            take_off(self._model, self)

    # ---- one step -----------------------------------------------------------------------------------------------

    def _compare_examples(self, step: int) -> None:
        """Compare what workers were given up to the step before: the newest rows may be repeated to fill it up."""
        self._given.append(self._inputs.hashes())
        if not self._given[-1] and "no ids" not in self._warned:
            self._warned.add("no ids")
            if self._is_main:
                logger.warning(
                    "The model was called without `input_ids`, so WorkerConsistencyCallback cannot tell examples "
                    "apart: rows that are repeated between workers, or missing, are not looked for."
                )
        if not self._watching:
            return
        self._bring_together(self._given[:-1])
        self._given = self._given[-1:]
        finding = self._shards.finding()
        if finding is not None:
            self.figures.add(step, {"consistency/repeated": float(finding.examples)}, {})
            self._warn(
                "shards",
                f"{finding.examples} examples were seen by several workers among the {finding.seen} rows of this "
                f"epoch so far. {finding.cause}",
            )

    def _bring_together(self, steps: list[list[int]]) -> None:
        for hashes in zip(*gather_object([steps]), strict=True):
            self._shards.add(hashes)

    def _report(self, step: int) -> None:
        mine = packed(self._source.end(), self._inputs.loss())
        figures, details = self._agreement.update(gather(mine[None]), self._shards.apart)
        self.figures.add(step, figures, {"source": self._source.name, **details})
        for kind, message in self._agreement.verdicts().items():
            self._warn(kind, message)

    def _warn(self, kind: str, message: str) -> None:
        if self._is_main and kind not in self._warned and not self._warned & {"shards", "same"}:
            logger.warning(f"Data-parallel workers disagree (consistency/* in the logs). {message}")
        self._warned.add(kind)
