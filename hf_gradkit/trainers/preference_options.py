"""The configuration fields of preference training, and what they mean."""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from .. import _compat
from .._text import did_you_mean, listing
from ..objectives.base import Objective
from ..objectives.registry import OBJECTIVES, build_objective
from ..weighting.base import PairRecord
from ..weighting.calibration import Calibration
from ..weighting.scope import Comparison
from .balancing import check_balancing
from .options import ExampleArguments, ExampleOptions, parse_json

OWN_NAMES = [*_compat.DPO_LOSS_TYPES, *OBJECTIVES]


@dataclass
class PreferenceArguments(ExampleArguments):
    """Fields about preference pairs. All of them are off by default.

    `loss_type` takes `"rpo"` (Regularized Preference Optimization, arXiv 2405.16436), `"beta_dpo"` (arXiv 2407.08639)
    and `"package.module:Class"` besides TRL's. `weighting` takes `"madpo"` (arXiv 2510.05342), which weighs pairs by
    their reward margins, besides the methods that weigh by loss; pairs are compared by their DPO loss,
    `-log sigmoid(beta * margin)`, whatever they are trained on. Weights multiply the preference terms of the loss.
    `weighting_kwargs` of "madpo": c_max 4.0, c_min None (1 / c_max), steepness 1.0, tau 6.907 or tau_probability,
    calibrate True; see [`~hf_gradkit.weighting.MADPO`] and [`~hf_gradkit.weighting.Calibration`].

    Args:
        gradient_balancing (`str`, defaults to `"none"`): make the chosen and the rejected answer's gradients equally
            long, so that neither log-probability drags the other along (arXiv 2410.13828); the loss's value is
            unchanged. `"pair"` does so exactly for each pair, with one more backward pass; `"batch"` by a moving
            average from every `monitor_steps`-th step, nearly free.
        loss_kwargs (`dict`, *optional*): options of the loss types that are not TRL's, by their names, such as
            `{"rpo": {"eta": 0.005, "normalization": "sum"}}`; see [`~hf_gradkit.objectives.RPO`] and
            [`~hf_gradkit.objectives.BetaDPO`].
        reward_margin_column (`str`, defaults to `"reward_margin"`): column with the reward of the chosen minus the
            reward of the rejected answer, used by `weighting="madpo"`.
        reward_model_name_or_path (`str`, *optional*): reward model that makes the column where the data lacks it. The
            scores are kept, so that the next run with the same model and data finds them.
    """

    gradient_balancing: str = field(
        default="none",
        metadata={"help": "Pulls of equal length on both answers: 'none', 'pair' (one more backward) or 'batch'."},
    )
    loss_kwargs: dict | str | None = field(
        default=None,
        metadata={
            "help": "Options of the loss types 'rpo' and 'beta_dpo', by name, as a mapping or JSON, such as "
            '\'{"rpo": {"eta": 0.005}}\'.'
        },
    )
    reward_margin_column: str = field(
        default="reward_margin",
        metadata={"help": "Column with the reward of the chosen minus that of the rejected answer (weighting madpo)."},
    )
    reward_model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Reward model that makes the margin column where the data lacks it (weighting madpo)."},
    )

    def __post_init__(self):
        if isinstance(self.loss_kwargs, str):
            self.loss_kwargs = parse_json("loss_kwargs", self.loss_kwargs)
        super().__post_init__()

    def _check_options(self) -> None:
        PreferenceOptions.of(self)


@dataclass(frozen=True)
class Term:
    """One term of the loss.

    Attributes:
        name: its loss type.
        weight: what multiplies it (`loss_weights`).
        objective: ours, or None for one of TRL's.
    """

    name: str
    weight: float
    objective: Objective | None


@dataclass(frozen=True)
class PreferenceOptions(ExampleOptions):
    """What the fields of [`PreferenceArguments`] ask for, checked.

    Attributes:
        terms: the terms of the loss, TRL's and ours.
        balancing: `gradient_balancing`.
        calibration: how margins become logits; None where none are used.
    """

    terms: tuple[Term, ...] = ()
    calibration: Calibration | None = None
    balancing: str = "none"

    # Pairs on which the loss is a mean of one value each, so that values can be weighted.
    INDEPENDENT: ClassVar[frozenset[str]] = frozenset(_compat.DPO_LOSS_TYPES) - {"aot", "aot_unpaired"}

    @classmethod
    def _read(cls, args: Any) -> dict[str, Any]:
        values = super()._read(args)
        kwargs = getattr(args, "weighting_kwargs", None) or {}
        if "normalization" in kwargs:
            raise ValueError(
                f"`weighting_kwargs` sets 'normalization' to {kwargs['normalization']!r}, but a pair has one loss "
                "value and no tokens to average over. Leave it out."
            )
        values["terms"] = _terms(args)
        values["balancing"] = getattr(args, "gradient_balancing", "none")
        if values["method"] is not None and values["method"].record_type is PairRecord:
            values["calibration"], values["comparison"] = values["comparison"], Comparison(warmup_ratio=0.0)
            if not isinstance(args.reward_margin_column, str) or not args.reward_margin_column:
                raise ValueError(
                    f"`reward_margin_column` is {args.reward_margin_column!r}, but weighting={values['name']!r} needs "
                    "the name of a column. Leave it at 'reward_margin' to have it scored or found."
                )
            values["columns"] = replace(values["columns"], margin=args.reward_margin_column)
        values["comparison"] = replace(values["comparison"], normalization="sequence")
        return values

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The terms' objectives that are ours."""
        return tuple(term.objective for term in self.terms if term.objective is not None)

    @property
    def weighs(self) -> bool:
        """Whether pairs get weights."""
        return self.method is not None or self.columns.weight is not None

    @property
    def active(self) -> bool:
        """Whether anything of ours is on."""
        ours = self.weighs or bool(self.objectives) or self.balancing != "none"
        return ours or bool(self.columns.of_user) or self.log

    def _check(self, args: Any) -> None:
        self._check_columns(args)
        check_balancing(args)
        if getattr(args, "reward_model_name_or_path", None) is not None and self.columns.margin is None:
            raise ValueError(
                f"`reward_model_name_or_path` is {args.reward_model_name_or_path!r}, but `weighting` is "
                f"{self.name!r}, which uses no reward margins. Set weighting='madpo', or leave the reward model out."
            )
        if self.weighs:
            self._check_independent()
            if getattr(args, "use_weighting", False) and any(term.name == "sft" for term in self.terms):
                raise ValueError(
                    "`use_weighting` (WPO) is True and `loss_type` has 'sft', a term that TRL itself can only weigh "
                    "so in micro-batches of one pair. Leave one of them out together with weights of pairs."
                )
        if self.objectives:
            self._check_objectives(args)

    def _check_independent(self) -> None:
        for term in self.terms:
            if term.objective is None and term.name not in self.INDEPENDENT:
                what = f"weighting={self.name!r}" if self.method is not None else f"{self.columns.weight!r}"
                raise ValueError(
                    f"`loss_type` has {term.name!r}, which sorts the log-ratios of a batch before it compares them, "
                    f"so its values belong to no single pair and cannot be weighted ({what}). Use another loss "
                    "type, or set weighting='none' and leave `weight_column` out."
                )

    def _check_objectives(self, args: Any) -> None:
        names = [term.name for term in self.terms if term.objective is not None]
        if args.f_divergence_type != "reverse_kl":
            raise ValueError(
                f"`f_divergence_type` is {args.f_divergence_type!r}, but {names[0]!r} is defined for 'reverse_kl' "
                "only. Use that, or one of TRL's loss types."
            )
        if args.ld_alpha is not None:
            raise ValueError(
                f"`ld_alpha` is {args.ld_alpha}, and {names[0]!r} is not defined for weighted sums of tokens. Unset "
                "it, or use one of TRL's loss types."
            )
        if args.use_weighting:
            raise ValueError(
                f"`use_weighting` (WPO) is True together with {names[0]!r}, which is not tested. Set one of them only."
            )
        if len(self.objectives) > 1 and any(_adapts(objective) for objective in self.objectives):
            raise ValueError(
                f"`loss_type` is {[term.name for term in self.terms]}: 'beta_dpo' chooses pairs and their beta for "
                "itself and is not tested together with another of our objectives. Keep one of them."
            )


def _adapts(objective: Objective) -> bool:
    return type(objective).adapter is not Objective.adapter


def _terms(args: Any) -> tuple[Term, ...]:
    """Return the terms of the loss; those of ours with their options from `loss_kwargs`."""
    names = getattr(args, "loss_type", None) or ["sigmoid"]
    names = [names] if isinstance(names, str) else list(names)
    weights = getattr(args, "loss_weights", None) or [1.0] * len(names)
    options = getattr(args, "loss_kwargs", None) or {}
    if not isinstance(options, dict):
        raise ValueError(
            f"`loss_kwargs` must be a mapping such as {{'rpo': {{'eta': 0.005}}}}, but it is {options!r}."
        )
    for name in options:
        if name not in names:
            raise ValueError(
                f"`loss_kwargs` has options for {name!r}, but `loss_type` is {names}.{did_you_mean(name, names)} Name "
                "the loss type there, or leave its options out."
            )
        if not isinstance(options[name], dict):
            raise ValueError(
                f"`loss_kwargs` of {name!r} must be a mapping of its options, such as {{'eta': 0.005}}, but it is "
                f"{options[name]!r}."
            )
    if len(set(names)) < len(names) and options:
        raise ValueError(f"`loss_type` names an objective twice: {names}. Name each once.")
    terms = []
    for name, weight in zip(names, weights, strict=False):  # TRL says that the lengths differ
        objective = None
        if name not in _compat.DPO_LOSS_TYPES:
            objective = _objective(name, options.get(name))
        elif name in options:
            raise ValueError(
                f"`loss_kwargs` has options for {name!r}, a loss type of TRL's, whose options are fields of their own "
                "(`beta`, `label_smoothing`, `discopop_tau`). Set them there."
            )
        terms.append(Term(name, float(weight), objective))
    return tuple(terms)


def _objective(name: str, options: dict[str, Any] | None) -> Objective:
    if not isinstance(name, str) or (name not in OBJECTIVES and ":" not in name):
        raise ValueError(
            f"There is no loss type {name!r}.{did_you_mean(name, OWN_NAMES)} Ours are {listing(OBJECTIVES)}, TRL's "
            f"{listing(_compat.DPO_LOSS_TYPES)}; one of your own is named by its import path, 'package.module:Class'."
        )
    return build_objective(name, options)
