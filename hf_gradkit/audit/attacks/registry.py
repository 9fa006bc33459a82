"""The names by which the audit and the command line know membership attacks."""

from typing import Any

from ..._methods import Kind, build
from .base import TokenRecord
from .error_zone import ErrorZone
from .gradient import GradientNorm, StepRatio
from .loss import Loss
from .min_k import MinK, MinKPlusPlus
from .reference import FLoRA, LogReference
from .supervised import Supervised
from .window import Window
from .zlib_loss import ZlibLoss

ATTACKS: dict[str, type] = {
    "loss": Loss,
    "zlib": ZlibLoss,
    "min_k": MinK,
    "min_k_plus_plus": MinKPlusPlus,
    "flora": FLoRA,
    "log_reference": LogReference,
    "error_zone": ErrorZone,
    "window": Window,
    "gradient_norm": GradientNorm,
    "step_ratio": StepRatio,
    "supervised": Supervised,
}

ATTACK = Kind(
    name="membership attack",
    option="attacks",
    example="'loss' or 'flora'",
    kwargs="attack_kwargs",
    contract=(
        "a frozen dataclass with class attributes `record_type` (`hf_gradkit.audit.attacks.TokenRecord`), "
        "`needs_reference` and `needs` (see `hf_gradkit.audit.attacks.TokenAttack`) that maps a list of records to "
        "one score an example, higher for a more likely member"
    ),
    attributes=("record_type", "needs_reference", "needs"),
)


def build_attack(name: str, options: dict[str, Any]) -> Any:
    """Return the attack `name` with its options.

    Raises:
        ValueError: for an unknown attack or option (naming the known ones) or a value out of its domain.
    """
    return build(ATTACK, name, ATTACKS, options)


def build_attacks(names: list[str] | None, options: dict[str, dict[str, Any]], reference: bool) -> dict[str, Any]:
    """Return attacks by their names.

    Args:
        names: of the attacks; when None all that can run without a backward pass.
        options: of some of them, by name.
        reference: whether there is a reference; without one, attacks that need it are left out when `names` is None.

    Raises:
        ValueError: for an unknown name or option, options of an attack that is not asked for, or an attack that was
            asked for and needs a reference that is missing.
    """
    cheap = {name: attack for name, attack in ATTACKS.items() if attack.record_type is TokenRecord}
    known = [name for name, attack in cheap.items() if reference or not attack.needs_reference]
    asked = known if names is None else list(dict.fromkeys(names))
    if not asked:
        raise ValueError("`attacks` is empty. Name at least one attack, or leave it out for all.")
    stray = sorted(set(options) - set(asked))
    if stray:
        raise ValueError(f"`attack_kwargs` has options for {stray[0]!r}, which is not among `attacks`: {asked}.")
    attacks = {name: build_attack(name, options.get(name, {})) for name in asked}
    for name, attack in attacks.items():
        if attack.needs_reference and not reference:
            raise ValueError(
                f"The attack {name!r} compares the target with the model before fine-tuning, and there is no "
                "reference. Name it with `reference_model_name_or_path`, or leave the attack out."
            )
    return attacks
