"""What callbacks that read per-row gradients share: when they watch, the recorder, and where figures go."""

import logging
from abc import abstractmethod
from contextlib import ExitStack
from typing import Any

from torch import nn
from transformers import TrainerCallback

from .._backends import SHARDED, backend, check_backend
from .._text import check_whole_number
from ..gradients.recorder import Recorder
from ..gradients.sharing import shared_recorder
from .figures_log import FiguresLog

logger = logging.getLogger(__name__)

_WATCHING = "_hf_gradkit_monitors"


class GradientMonitor(TrainerCallback):
    """Watches the gradients of every `monitor_steps`-th optimizer step, one micro-batch after the other.

    A subclass says what it needs of the recorder (`_needs`), takes in each micro-batch after its backward pass
    (`_take`) and ends the step (`_report`).

    Callbacks are not told of an error or Ctrl-C in the middle of a step. Our trainers end the watching themselves;
    what another trainer leaves on a model goes when any monitor begins to train that model again.

    Args:
        name: of the file of figures, `<output_dir>/<name>.jsonl`.
        monitor_steps: watch every so many optimizer steps.
        trainer: the trainer, so that trackers get the figures as well.
    """

    def __init__(self, name: str, monitor_steps: int, trainer: Any):
        check_whole_number("monitor_steps", monitor_steps, 1)
        self.monitor_steps = monitor_steps
        self.figures = FiguresLog(name, trainer)
        self._trainer = trainer
        self._stack = ExitStack()
        self._recorder: Recorder | None = None
        self._named = False

    # ---- what a subclass says -----------------------------------------------------------------------------------

    def _check(self, args: Any, model: Any) -> None:
        """Refuse what is not right for this monitor, before anything trains."""

    @abstractmethod
    def _needs(self, args: Any) -> dict[str, Any]:
        """Return what is asked of `shared_recorder`."""

    def _watch(self, model: nn.Module) -> None:
        """Put hooks on the model for one step; `self._stack` takes them off."""

    @abstractmethod
    def _take(self, args: Any) -> None:
        """Take in the micro-batch that was just backpropagated, from `self._recorder`."""

    @abstractmethod
    def _report(self, args: Any, step: int, model: nn.Module) -> None:
        """End a monitored step, on all ranks."""

    def _end(self, args: Any) -> None:
        """End the run, on the main process."""

    # ---- the run ------------------------------------------------------------------------------------------------

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        close_all(model)  # a run that was interrupted may have left something, another trainer's even
        self._close()
        check_backend(backend(), f"The figures of {type(self).__name__}", "leave the monitor out", tested=SHARDED)
        if args.fp16:
            raise ValueError("`fp16` scales the loss, and with it the gradients' norms. Use bf16 with the monitor.")
        self._check(args, model)
        self.figures.start(args.output_dir, state.global_step, state.is_world_process_zero)

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self._close()
        if state.global_step % self.monitor_steps == 0:
            leave_on(model, self)
            self._stack.callback(take_off, model, self)
            self._recorder = self._stack.enter_context(shared_recorder(model, **self._needs(args)))
            self._watch(model)
            self._name_uncovered()

    def on_substep_end(self, args, state, control, model=None, **kwargs):
        self._read(args, model)

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self._read(args, model)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if self._recorder is None:
            return
        try:
            self._report(args, state.global_step, model)
        finally:
            self._close()

    def on_log(self, args, state, control, **kwargs):
        self.figures.after_log(state.log_history)

    def on_train_end(self, args, state, control, **kwargs):
        self._close()
        if state.is_world_process_zero:
            self._end(args)

    def stop_watching(self) -> None:
        """Take everything off the model, as after a run that was interrupted in the middle of a step."""
        self._close()

    def _read(self, args: Any, model: nn.Module) -> None:
        if self._recorder is None:
            return
        try:
            self._take(args)
        except BaseException:
            close_all(model)  # the layers' own forwards come back, whatever happened
            raise

    def _name_uncovered(self) -> None:
        missing = self._recorder.uncovered
        if missing and not self._named:
            logger.warning(
                f"{len(missing)} parameters, {1 - self._recorder.coverage:.1%} of all, are not among what "
                f"{type(self).__name__} sees: {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}."
            )
        self._named = True

    def _close(self) -> None:
        self._stack.close()
        self._recorder = None


def leave_on(model: nn.Module, monitor: Any) -> None:
    """Note on a model that a monitor has something on it, which its `_close` takes off."""
    vars(model).setdefault(_WATCHING, []).append(monitor)


def take_off(model: nn.Module, monitor: Any) -> None:
    """Forget that a monitor has something on a model."""
    vars(model)[_WATCHING].remove(monitor)


def close_all(model: nn.Module) -> None:
    """End the watching of all monitors of a model."""
    for monitor in list(vars(model).get(_WATCHING, ())):
        monitor._close()
