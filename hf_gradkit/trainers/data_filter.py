"""The configuration's `data_filter`: which of the training pairs are trained on, decided before training."""

import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate.logging import get_logger

from .._methods import plain
from .options import parse_json

logger = get_logger(__name__)


class NamedFunction(str):
    """A function in a configuration: its name, wherever the configuration is written.

    Trackers write a configuration as JSON, and checkpoints pickle it, which neither can do with any function.

    Args:
        function: a component of a selection, which `function` of the name gives back.
    """

    function: Any

    def __new__(cls, function: Any) -> "NamedFunction":
        of = function if hasattr(function, "__qualname__") else type(function)
        name = super().__new__(cls, f"{of.__module__}:{of.__qualname__}")
        name.function = function
        return name

    def __copy__(self) -> "NamedFunction":
        return self

    def __deepcopy__(self, memo: dict) -> "NamedFunction":
        return self

    def __reduce__(self) -> tuple:
        return str, (str(self),)


@dataclass
class DataFilterArguments:
    """Fields that keep a part of the training data. Off by default.

    Args:
        data_filter (`str`, defaults to `"none"`): the selector that keeps it: `"fifa"`, `"random"`, `"length"`, or
            `"package.module:Class"` for one of your own; see [`~hf_gradkit.selection.FiFA`]. Scores and a report go to
            `<output_dir>/_data_filter`. The evaluation data is left as it is.
        data_filter_kwargs (`dict`, *optional*): options of the selector, `fraction` or `count` among them. A function
            becomes a [`NamedFunction`].
    """

    data_filter: str = field(
        default="none",
        metadata={"help": "Train on a part of the data: 'fifa', 'random', 'length', or 'package.module:Class'."},
    )
    data_filter_kwargs: dict | str | None = field(
        default=None,
        metadata={
            "help": "Options of the data filter, as a mapping or JSON, such as "
            '\'{"fraction": 0.1, "margin": {"by": "reward_model", "model": "runs/reward"}}\'.'
        },
    )

    def __post_init__(self):
        if isinstance(self.data_filter_kwargs, str):
            self.data_filter_kwargs = parse_json("data_filter_kwargs", self.data_filter_kwargs)
        if self.data_filter_kwargs:
            self.data_filter_kwargs = {
                name: NamedFunction(value) if callable(value) else plain(value)
                for name, value in self.data_filter_kwargs.items()
            }
        build_filter(self)  # says now what is wrong with the options
        super().__post_init__()


def build_filter(args: Any) -> Any:
    """Return the selector that a configuration asks for, or None; TRL's own ask for none.

    Raises:
        ValueError: for an unknown selector or option, or options without a selector.
    """
    name, options = getattr(args, "data_filter", "none"), getattr(args, "data_filter_kwargs", None) or {}
    if name == "none":
        if options:
            raise ValueError(
                f"`data_filter_kwargs` sets {next(iter(options))!r}, but `data_filter` is 'none', so it has no "
                "effect. Choose a filter, for example data_filter='fifa', or leave the options out."
            )
        return None
    from ..selection.registry import build_selector  # loads what scores, which few runs need

    options = {key: value.function if isinstance(value, NamedFunction) else value for key, value in options.items()}
    return build_selector(name, options, "data_filter", "data_filter_kwargs")


def filter_training_data(constructor: Any, positional: tuple, keywords: dict[str, Any]) -> dict[str, Any]:
    """Return a trainer's arguments, by name, with the part of the training data that its configuration keeps.

    Args:
        constructor: of the parent, whose arguments these are.
        positional, keywords: the arguments.

    Raises:
        ValueError: if the data is streamed, or the selector refuses it.
    """
    given = dict(inspect.signature(constructor).bind(None, *positional, **keywords).arguments)
    given.pop("self", None)
    given.update(given.pop("kwargs", {}))
    selector = build_filter(given.get("args"))
    if selector is not None and given.get("train_dataset") is not None:
        given["train_dataset"] = _filtered(selector, given["train_dataset"], given["args"].output_dir)
    return given


def _filtered(selector: Any, dataset: Any, output_dir: str) -> Any:
    from ..reporting.selection_files import FILTER, write_selection_files
    from ..scoring.processes import on_main

    result = selector.select(dataset)
    folder = Path(output_dir) / FILTER
    on_main(lambda: write_selection_files(result.report, result.scores, folder) and None)
    logger.info(
        f"data_filter {result.report['by']!r} keeps {len(result.dataset)} of {len(dataset)} training pairs; why is in "
        f"{folder}."
    )
    return result.dataset
