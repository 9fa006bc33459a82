"""The options that name the data of a command: of those that train, and of those that read one split."""

from dataclasses import dataclass, field
from typing import Any

import trl
from datasets import Dataset, IterableDataset

from ..data.loading import load_split, map_columns
from ..trainers.options import parse_json


@dataclass
class ColumnMapping:
    """The option that renames columns, of every command that reads data.

    Args:
        column_mapping (`dict`, *optional*): renames columns of the data, existing name to new name.
    """

    column_mapping: dict | str | None = field(
        default=None,
        metadata={
            "help": "Renames columns of the data: existing name to new name, as a mapping or JSON, such as "
            '\'{"question": "prompt", "answer": "completion"}\'.'
        },
    )

    def __post_init__(self):
        mapping = self.column_mapping
        if isinstance(mapping, str):
            mapping = parse_json("column_mapping", mapping)
        if mapping is not None and not (
            isinstance(mapping, dict) and all(isinstance(name, str) for pair in mapping.items() for name in pair)
        ):
            raise ValueError(
                f"`column_mapping` must map existing names to new names, but it is {mapping!r}. Write for example "
                '{"question": "prompt", "answer": "completion"}.'
            )
        self.column_mapping = mapping

    def renamed(self, dataset: Any, name: str) -> Any:
        """Return data with its columns renamed; `name` is what messages call it."""
        return map_columns(dataset, self.column_mapping or {}, name)


@dataclass
class ScriptArguments(ColumnMapping, trl.ScriptArguments):
    """TRL's arguments about the data of a training job, and

    Args:
        eval_dataset_name (`str`, *optional*): evaluate on this file or data set instead of the test split of
            `dataset_name`.
    """

    eval_dataset_name: str | None = field(
        default=None,
        metadata={"help": "File or data set to evaluate on, instead of the test split of `dataset_name`."},
    )


@dataclass
class DataArguments(ColumnMapping):
    """The data of a command that reads one split: it scores, selects or audits. Named as in training jobs.

    Args:
        dataset_name (`str`): a file, a folder or a data set of the Hub.
        dataset_config (`str`, *optional*): configuration of a data set of the Hub.
        dataset_train_split (`str`, *optional*, defaults to `"train"`): the split that is read.
        dataset_streaming (`bool`, *optional*, defaults to `False`): refused, clearly, where all rows are needed.
    """

    dataset_name: str | None = field(
        default=None, metadata={"help": "The data: a file, a folder or a data set of the Hub."}
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration of the data set, such as 'main' of openai/gsm8k."}
    )
    dataset_train_split: str = field(default="train", metadata={"help": "Split that is read."})
    dataset_streaming: bool = field(default=False, metadata={"help": "Read rows as they are needed."})

    def load(self) -> Dataset | IterableDataset:
        """Return the data as it is, its columns not renamed.

        Raises:
            ValueError: if no data is named, or it cannot be read (see `load_split`).
        """
        if self.dataset_name is None:
            raise ValueError("No data is named. Set `dataset_name` to a file or a data set of the Hub.")
        return load_split(self.dataset_name, self.dataset_train_split, self.dataset_config, self.dataset_streaming)
