"""What a chapter shows while it trains: one bar a training, and no raw logs."""

import warnings

import datasets
import transformers
from transformers import ProgressCallback, Trainer


def one_bar() -> None:
    """Silence the bars of data sets and models that are loaded, and the libraries' notes to each other."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()


def train(trainer: Trainer) -> None:
    """Train with one bar."""
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Bar)
    trainer.train()


class Bar(ProgressCallback):
    """The progress bar, without the logs: the summary and the report tell them."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        pass

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        pass
