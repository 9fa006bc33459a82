"""The configuration's `monitors`: callbacks by their names."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from .._text import did_you_mean, listing


@dataclass
class MonitorArguments:
    """Fields that add callbacks.

    Args:
        monitors (`list[str]`, *optional*): what to watch while training: `"gradient_statistics"`
            ([`~hf_gradkit.GradientStatisticsCallback`]), `"worker_consistency"`
            ([`~hf_gradkit.WorkerConsistencyCallback`]); where a language model is trained `"privacy_audit"`
            ([`~hf_gradkit.PrivacyAuditCallback`]), which looks after each epoch; and in preference training
            `"entanglement"` ([`~hf_gradkit.EntanglementCallback`]).
        monitor_steps (`int`, defaults to 10): watch every so many optimizer steps.
    """

    # The names that make sense for the trainer.
    MONITORS: ClassVar[tuple[str, ...]] = ("gradient_statistics", "worker_consistency")

    monitors: list[str] | None = field(
        default=None,
        metadata={
            "help": "What to watch while training: 'gradient_statistics', 'worker_consistency', 'privacy_audit' "
            "(language models), 'entanglement' (DPO)."
        },
    )
    monitor_steps: int = field(default=10, metadata={"help": "Watch every so many optimizer steps."})

    def __post_init__(self):
        for name in self.monitors or []:
            if name not in self.MONITORS:
                raise ValueError(
                    f"`monitors` has {name!r}, which {type(self).__name__} does not know."
                    f"{did_you_mean(name, self.MONITORS)} It knows: {listing(self.MONITORS)}."
                )
        build_monitors(self, None)  # says now what is wrong with the options
        super().__post_init__()


def build_monitors(args: Any, trainer: Any) -> list[Any]:
    """Return the callbacks that a configuration asks for; TRL's and transformers' own ask for none."""
    names = getattr(args, "monitors", None) or []
    if not names:
        return []
    return [_build(name, args.monitor_steps, trainer) for name in names]


def _build(name: str, monitor_steps: int, trainer: Any) -> Any:
    if name == "privacy_audit":  # looks after each epoch
        from ..callbacks.privacy_audit import PrivacyAuditCallback

        return PrivacyAuditCallback(trainer=trainer)
    from .. import callbacks

    classes = {
        "entanglement": callbacks.EntanglementCallback,
        "gradient_statistics": callbacks.GradientStatisticsCallback,
        "worker_consistency": callbacks.WorkerConsistencyCallback,
    }
    return classes[name](monitor_steps=monitor_steps, trainer=trainer)
