"""What a chapter shows while it trains: one bar a training, and no raw logs."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import datasets
import transformers
from transformers import ProgressCallback, Trainer


def one_bar() -> None:
    """Silence the bars of data sets and models that are loaded, and the libraries' notes to each other."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()


@contextmanager
def held_back(logger: str) -> Iterator[list[str]]:
    """Keep what a logger says off the live table; the list that is yielded gets it."""
    held: list[str] = []

    def hold(record: logging.LogRecord) -> bool:
        held.append(record.getMessage())
        return False

    logging.getLogger(logger).addFilter(hold)
    try:
        yield held
    finally:
        logging.getLogger(logger).removeFilter(hold)


def train(trainer: Trainer, line: Callable[[int, dict[str, Any]], str] | None = None) -> None:
    """Train with one bar, and above it what `line` makes of the step and the figures of each log."""
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Bar(line))
    trainer.train()


class Bar(ProgressCallback):
    """The progress bar, without the logs: the summary and the report tell them, or `line` the few that matter."""

    def __init__(self, line: Callable[[int, dict[str, Any]], str] | None = None):
        super().__init__()
        self.line = line

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.line is not None and "loss" in logs and self.training_bar is not None:
            self.training_bar.write(self.line(state.global_step, logs))

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        pass
