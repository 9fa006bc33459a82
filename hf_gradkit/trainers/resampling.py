"""The configuration's `sampler`: which examples an epoch has, drawn by the losses that were seen before it."""

import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset
from torch import Tensor

from .._text import did_you_mean, listing
from ..data.columns import INDEX
from .options import parse_json

logger = logging.getLogger(__name__)

SAMPLERS = ("none", "personal_loss")
OPTIONS = ("pool", "temperature", "plain_epochs")


@dataclass
class SamplerArguments:
    """Fields that decide which examples an epoch has. Off by default.

    Args:
        sampler (`str`, defaults to `"none"`): `"personal_loss"` draws them within each group of `group_column` (all
            rows, without one), those with a low loss more often, after one plain epoch: PLD, arXiv 2502.00348; see
            [`~hf_gradkit.selection.PersonalLossSampler`]. With `"none"`, `train_sampling_strategy` decides.
        sampler_kwargs (`dict`, *optional*): options of the sampler: pool 5, temperature 0.1, plain_epochs 1.
    """

    sampler: str = field(
        default="none",
        metadata={"help": "Which examples an epoch has: 'none', or 'personal_loss' for resampling by loss (PLD)."},
    )
    sampler_kwargs: dict | str | None = field(
        default=None,
        metadata={"help": "Options of the sampler, as a mapping or JSON, such as '{\"temperature\": 0.2}'."},
    )

    def __post_init__(self):
        if isinstance(self.sampler_kwargs, str):
            self.sampler_kwargs = parse_json("sampler_kwargs", self.sampler_kwargs)
        check_sampler(self)
        super().__post_init__()


def check_sampler(args: Any) -> None:
    """Raise `ValueError` for a sampler that is not known or has wrong options, or that cannot be followed."""
    options = args.sampler_kwargs or {}
    if args.sampler not in SAMPLERS:
        raise ValueError(
            f"`sampler` is {args.sampler!r}.{did_you_mean(args.sampler, SAMPLERS)} Known samplers: "
            f"{listing(SAMPLERS)}."
        )
    if args.sampler == "none":
        if options:
            raise ValueError(
                f"`sampler_kwargs` sets {next(iter(options))!r}, but `sampler` is 'none', so it has no effect. Set "
                "sampler='personal_loss', or leave the option out."
            )
        return
    for option in options:
        if option not in OPTIONS:
            raise ValueError(
                f"The sampler {args.sampler!r} has no option {option!r}.{did_you_mean(option, OPTIONS)} Its options: "
                f"{listing(OPTIONS)}."
            )
    make_sampler(args, ["any"])  # says what is wrong with their values
    if args.packing:
        raise ValueError(
            "`packing` is True together with `sampler` 'personal_loss', but a packed row holds several examples, and "
            "they are drawn one by one. Set packing=False."
        )
    if args.train_sampling_strategy != "random":
        raise ValueError(
            f"`train_sampling_strategy` is {args.train_sampling_strategy!r} and `sampler` 'personal_loss', which both "
            "decide the order of the examples. Leave one of them out."
        )


def make_sampler(args: Any, groups: list) -> Any:
    """Return the sampler of a configuration for examples of these groups."""
    from ..selection.personal_loss import PersonalLossSampler  # loads what scores, which few runs need

    seed = args.seed if args.data_seed is None else args.data_seed
    return PersonalLossSampler(groups, seed=seed, **(args.sampler_kwargs or {}))


class Resampler:
    """A sampler over a prepared training set, which is told losses by the rows' numbers in the user's data.

    Preparation may have dropped and shuffled rows.

    Args:
        args: the trainer's configuration.
        dataset: as the trainer prepared it.
    """

    def __init__(self, args: Any, dataset: Dataset):
        column, plain = args.group_column, dataset.with_format(None)
        self.sampler = make_sampler(args, plain[column] if column else [""] * len(dataset))
        numbers = np.array(plain[INDEX])
        self._place = np.full(numbers.max() + 1, -1)  # of a row of the user's data, among those prepared
        self._place[numbers] = np.arange(len(numbers))

    def update(self, index: Tensor, losses: Tensor) -> None:
        """Tell the losses of some rows of the user's data, the same on all processes. (m,) (m,)"""
        self.sampler.update(self._place[index.long().numpy()], losses.numpy())

    def start(self, state: dict[str, Any] | None, resumes: bool) -> None:
        """Begin a run, fresh or from a checkpoint's state of the sampler."""
        self.sampler.reset()
        if state is not None and len(state["losses"]) == len(self.sampler):
            self.sampler.load_state_dict(state)
        elif resumes:
            logger.warning(
                "The checkpoint holds no losses for these examples: it was written without `sampler`, or with other "
                "data. They are unknown until the examples are seen again."
            )


class ResamplingMixin:
    """Goes before `ExampleWeightingMixin`: draws the training batches by a [`Resampler`], where one is asked for."""

    _resampler: Resampler | None = None

    def _attach_columns(self, dataset, args):
        if self._options.resamples and not isinstance(dataset, Dataset):
            raise ValueError(
                f"The training data is a {type(dataset).__name__}, and `sampler` {args.sampler!r} draws from all "
                "rows: it needs a whole `datasets.Dataset`. Load it without streaming, or set sampler='none'."
            )
        return super()._attach_columns(dataset, args)

    def _make_weigher(self):
        weigher = super()._make_weigher()
        if self._options.resamples and self.train_dataset is not None:
            self._resampler = Resampler(self.args, self.train_dataset)
            weigher.tell_losses = self._resampler.update
        return weigher

    def _get_train_sampler(self, train_dataset=None):
        if self._resampler is None:
            return super()._get_train_sampler(train_dataset)
        return self._resampler.sampler

    def _start(self, max_steps, state):
        super()._start(max_steps, state)
        if self._resampler is not None:
            self._resampler.start((state or {}).get("sampler"), resumes=state is not None)

    def _training_state(self):
        state = super()._training_state()
        return state if self._resampler is None else {**state, "sampler": self._resampler.sampler.state_dict()}

    def _run_epoch(self, model, epoch, **keywords):
        if self._resampler is not None:
            self._check_resamples(keywords["num_update_steps_per_epoch"])
            self._resampler.sampler.set_epoch(epoch)
        return super()._run_epoch(model, epoch, **keywords)

    def _check_resamples(self, steps: int) -> None:
        """Raise `ValueError` for a run that ends within its plain epochs, of so many optimizer steps each.

        The first is one of them whatever `plain_epochs` says: no loss is known then.
        """
        plain = max(1, self._resampler.sampler.plain_epochs)
        if self.state.max_steps <= plain * steps:
            raise ValueError(
                f"`sampler` {self.args.sampler!r} begins to resample after {plain} plain epoch(s) of {steps} steps, "
                f"and the run ends after {self.state.max_steps} steps: it would do nothing. Set `num_train_epochs` "
                "or `max_steps` higher, or 'plain_epochs' lower in `sampler_kwargs`; in the first epoch no loss is "
                "known, so there is nothing to resample by."
            )
