"""RewardTrainer: TRL's, which says what it makes of the data."""

from typing import Any

import trl
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset

from .._backends import check_sharding
from ..data.columns import column_names
from ..scoring.pairs import PAIR, check_pair_columns, check_pairs, identical_message
from .checkpointing import CheckpointMixin
from .checks import check_not_empty, check_processes
from .hold_out import hold_out_rows
from .hub import HubMixin
from .monitors import build_monitors

logger = get_logger(__name__)


class RewardTrainer(CheckpointMixin, HubMixin, trl.RewardTrainer):
    """A drop-in for [`trl.RewardTrainer`] that trains the same model, step by step, and looks at the pairs first.

    It warns, with counts, of a column `margin`, which TRL takes for a margin in the loss, of pairs whose completions
    are the same, and of those that TRL drops as longer than `max_length`. Streams are not looked into.

    Example:

    ```python
    from hf_gradkit import RewardConfig, RewardTrainer

    trainer = RewardTrainer(model="Qwen/Qwen3-0.6B", args=RewardConfig("reward"), train_dataset=pairs)
    trainer.train()
    ```

    Raises:
        ValueError: for data without `chosen` and `rejected`, with an empty completion (naming the row), or without
            a pair that is short enough; before anything trains.
    """

    def __init__(
        self, model, args=None, data_collator=None, train_dataset=None, eval_dataset=None, *positional, **keywords
    ):
        check_processes(args)
        if train_dataset is not None:
            check_not_empty(train_dataset)
        train_dataset, eval_dataset = hold_out_rows(args, train_dataset, eval_dataset)
        super().__init__(model, args, data_collator, train_dataset, eval_dataset, *positional, **keywords)
        check_sharding(self.accelerator)
        for monitor in build_monitors(self.args, self):
            self.add_callback(monitor)

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        if isinstance(dataset, (Dataset, IterableDataset)):
            _look_at(dataset, dataset_name)
        prepared = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        if isinstance(dataset, Dataset) and len(prepared) < len(dataset):
            dropped = f"{len(dataset) - len(prepared)} of {len(dataset)} pairs of the {dataset_name} data"
            if not len(prepared):
                raise ValueError(
                    f"{dropped} are longer than `max_length` ({args.max_length} tokens), and none is left. Set "
                    "`max_length` to what the model can read."
                )
            logger.warning(
                f"{dropped} are dropped: a completion with its prompt is longer than `max_length` "
                f"({args.max_length} tokens)."
            )
        return prepared


def _look_at(dataset: Any, name: str) -> None:
    """Warn of, or refuse, what is wrong with the pairs, unless they are tokenised already."""
    present = column_names(dataset)
    if "margin" in present:
        logger.warning(
            f"The {name} data has a column 'margin'. TRL's RewardTrainer subtracts it from the difference of the "
            "rewards in the loss, log sigmoid(chosen - rejected - margin), which trains another reward model. If it "
            "is not meant for that, rename it: dataset.rename_column('margin', 'reward_margin'), or column_mapping "
            '\'{"margin": "reward_margin"}\' on the command line.'
        )
    if any(f"{column}{suffix}" in present for column in PAIR for suffix in ("_ids", "_input_ids")):
        return
    called = f"the {name} data"
    check_pair_columns(dataset, called)
    if isinstance(dataset, IterableDataset):
        return
    _check_prompt(dataset, called)
    identical = check_pairs(dataset, called)
    if identical:
        logger.warning(f"In {called}, " + identical_message(identical, len(dataset), "they teach nothing"))


def _check_prompt(dataset: Dataset, name: str) -> None:
    if "prompt" not in dataset.column_names or not len(dataset):
        return
    row = dataset.with_format(None)[0]
    if isinstance(row["prompt"], str) != isinstance(row["chosen"], str):
        raise ValueError(
            f"In {name}, `prompt` is a {type(row['prompt']).__name__} and `chosen` a {type(row['chosen']).__name__}, "
            "so TRL's RewardTrainer cannot put one before the other. If the prompt is in `chosen` and `rejected` "
            'already, remove its column, or rename it: column_mapping \'{"prompt": "prompt_text"}\'.'
        )
