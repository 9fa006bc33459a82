"""The names by which trainers, configurations and the command line know preference objectives."""

from typing import Any

from .._methods import Kind, build
from .base import Objective
from .beta_dpo import BetaDPO
from .rpo import RPO

OBJECTIVES: dict[str, type[Objective]] = {"rpo": RPO, "beta_dpo": BetaDPO}

OBJECTIVE = Kind(
    name="preference objective",
    option="loss_type",
    example="'sigmoid' or 'rpo'",
    kwargs="loss_kwargs",
    contract="a frozen dataclass that inherits from `hf_gradkit.objectives.Objective`",
    attributes=("preference", "regulariser", "adapter"),
)


def build_objective(name: str, options: dict[str, Any] | None = None) -> Objective:
    """Return the objective `name` with its options.

    Args:
        name: a name of `OBJECTIVES`, or `"package.module:Class"` for one that lives outside this package.
        options: values of its fields.

    Raises:
        ValueError: for an unknown objective or option (naming the known ones) or a value out of its domain.
    """
    return build(OBJECTIVE, name, OBJECTIVES, options or {})
