"""The configuration fields that the trainers share, and what they mean."""

import json
from dataclasses import dataclass, field
from typing import Any

from ..data.columns import ExampleColumns
from ..weighting.base import LossRecord
from ..weighting.build import build_weighting
from ..weighting.scope import Comparison


@dataclass
class ExampleArguments:
    """Fields about single examples, for every trainer. All of them are off by default.

    Args:
        weighting (`str`, defaults to `"none"`): how losses become weights: `"none"`, `"linupper"`, `"quadratic"`,
            `"extremes"` (arXiv 2502.06733), or `"package.module:Class"` for a method of your own.
        weighting_kwargs (`dict`, *optional*): options of the method (temperature 1.0, low_quantile 0.0,
            high_quantile 1.0, max_weight None) and of the comparison (scope "running", warmup_ratio 0.05,
            window 512, normalization "token"); see [`~hf_gradkit.weighting.LossWeighting`] and
            [`~hf_gradkit.weighting.Comparison`].
        weight_column (`str`, *optional*): column of the training data with a weight >= 0 for each example; it
            multiplies the example's loss, and 0 drops its gradient exactly.
        normalize_weight_column (`bool`, defaults to `False`): divide by the weighted number of tokens instead of the
            number of tokens, so that the scale of the weights does not change the size of the step.
        group_column (`str`, *optional*): column with a name for each example's group; the logs then hold the mean
            loss and weight of each group.
        example_id_column (`str`, *optional*): column with the ids that the example log uses instead of row numbers.
        example_log (`bool`, defaults to `False`): write one row per example and epoch (id, loss, weight) to parquet
            in `<output_dir>/example_log`.
    """

    weighting: str = field(
        default="none",
        metadata={
            "help": "How losses become weights: 'none', 'linupper', 'quadratic', 'extremes', or "
            "'package.module:Class' for a method of your own."
        },
    )
    weighting_kwargs: dict | str | None = field(
        default=None,
        metadata={
            "help": "Options of the weighting method and of the comparison, as a mapping or JSON, such as "
            '\'{"temperature": 0.4, "scope": "step"}\'.'
        },
    )
    weight_column: str | None = field(
        default=None,
        metadata={"help": "Column with a weight of at least 0 for each example; it multiplies the example's loss."},
    )
    normalize_weight_column: bool = field(
        default=False,
        metadata={"help": "Divide the loss by the weighted number of tokens instead of the number of tokens."},
    )
    group_column: str | None = field(
        default=None,
        metadata={"help": "Column with a group name for each example; losses and weights are logged for each group."},
    )
    example_id_column: str | None = field(
        default=None,
        metadata={"help": "Column with the ids that the example log uses instead of row numbers."},
    )
    example_log: bool = field(
        default=False,
        metadata={"help": "Write one row per example and epoch (id, loss, weight) to <output_dir>/example_log."},
    )

    def __post_init__(self):
        if isinstance(self.weighting_kwargs, str):
            self.weighting_kwargs = parse_json("weighting_kwargs", self.weighting_kwargs)
        self._check_options()  # says now what is wrong, before a model is loaded
        super().__post_init__()

    def _check_options(self) -> None:
        ExampleOptions.of(self)


def parse_json(name: str, text: str) -> dict[str, Any]:
    """Return the dictionary that the command line gave as JSON for the field `name`, or raise `ValueError`."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"`{name}` must be a JSON object, but {text!r} is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ValueError(f"`{name}` must be a JSON object such as '{{\"temperature\": 0.4}}', but it is {text!r}.")
    return value


@dataclass(frozen=True)
class ExampleOptions:
    """What the fields of [`ExampleArguments`] ask for, checked.

    Attributes:
        name: name of the weighting method.
        method: maps a `LossRecord` to multipliers; None when weighting is off.
        comparison: which examples are compared.
        columns: the columns that accompany an example.
        normalize_weights: divide by the weighted number of tokens.
        log: write the example log.
        own_loss: the loss is the user's `per_example_loss`, which needs all this even without weights.
        resamples: a `sampler` needs the losses of single examples.
    """

    name: str
    method: Any
    comparison: Comparison
    columns: ExampleColumns
    normalize_weights: bool
    log: bool
    own_loss: bool = False
    resamples: bool = False

    @classmethod
    def of(cls, args: Any) -> "ExampleOptions":
        """Read the options from a configuration; TRL's and transformers' own have none of them, and all are off.

        Raises:
            ValueError: naming the field, the value and what to set instead.
        """
        options = cls(**cls._read(args))
        options._check(args)
        if options.active:
            options._check_training(args)
        return options

    @classmethod
    def _read(cls, args: Any) -> dict[str, Any]:
        """Return the values of this class's fields."""
        name = getattr(args, "weighting", "none")
        kwargs = getattr(args, "weighting_kwargs", None) or {}
        method, around = build_weighting(name, kwargs)
        if name == "none":
            method = None
            without_effect = [key for key in kwargs if key != "normalization"]
            if without_effect:
                raise ValueError(
                    f"`weighting_kwargs` sets {without_effect[0]!r}, but `weighting` is 'none', so it has no effect. "
                    "Choose a method, for example weighting='linupper', or leave the option out."
                )
        columns = ExampleColumns(
            weight=getattr(args, "weight_column", None),
            group=getattr(args, "group_column", None),
            example_id=getattr(args, "example_id_column", None),
        )
        return {
            "name": name,
            "method": method,
            "comparison": around,
            "columns": columns,
            "normalize_weights": getattr(args, "normalize_weight_column", False),
            "log": getattr(args, "example_log", False),
            "resamples": getattr(args, "sampler", "none") != "none",
        }

    def _check(self, args: Any) -> None:
        """Refuse options that do not go together, on or off."""
        if self.method is not None and self.method.record_type is not LossRecord:
            raise ValueError(
                f"`weighting` is {self.name!r}, which weighs preference pairs by their reward margin, and not single "
                "examples by their loss. Choose 'linupper', 'quadratic' or 'extremes' here."
            )
        self._check_columns(args)

    def _check_columns(self, args: Any) -> None:
        if self.normalize_weights and self.columns.weight is None:
            raise ValueError("`normalize_weight_column` is True, but there is no `weight_column`. Name the column.")
        names_examples = self.log or "gradient_statistics" in (getattr(args, "monitors", None) or [])
        if self.columns.example_id is not None and not names_examples:
            raise ValueError(
                f"`example_id_column` is {self.columns.example_id!r}, but no example log is written and no monitor "
                "names examples. Set `example_log=True` or monitors=['gradient_statistics'], or leave the column out."
            )

    @property
    def active(self) -> bool:
        """Whether anything of ours is on."""
        sequence = self.comparison.normalization == "sequence"
        asked = self.log or self.own_loss or self.resamples
        return self.method is not None or bool(self.columns.of_user) or sequence or asked

    @property
    def weighs_ahead(self) -> bool:
        """Whether weights need the losses of the whole optimizer step before its first backward."""
        return self.method is not None and self.comparison.scope == "step"

    def _check_training(self, args: Any) -> None:
        """Refuse what does not go together with per-example losses."""
        refused = {
            "label_smoothing_factor": "label smoothing takes another path to the loss, which has no example in it",
            "use_liger_kernel": "Liger's fused loss never gives the losses of single examples",
            "torch_compile": "it is not tested together with example weighting yet",
            "auto_find_batch_size": "it is not tested together with example weighting yet",
        }
        for name, reason in refused.items():
            if getattr(args, name, None):
                raise ValueError(
                    f"`{name}` is set to {getattr(args, name)!r} together with example weighting or columns, but "
                    f"{reason}. Unset `{name}`, or set weighting='none' and leave out the example columns."
                )
        if getattr(args, "packing", False) and args.packing_strategy == "wrapped":
            raise ValueError(
                "`packing_strategy` 'wrapped' cuts documents without keeping their bounds, so their losses cannot be "
                "told apart. Use packing_strategy='bfd' or 'bfd_split' together with example weighting or columns."
            )
