"""The configuration's `monitors`: callbacks by their names."""

from dataclasses import dataclass, field
from typing import Any

from .._text import did_you_mean, listing

MONITORS = ("entanglement",)


@dataclass
class MonitorArguments:
    """Fields that add callbacks.

    Args:
        monitors (`list[str]`, *optional*): what to watch while training: `"entanglement"`
            ([`~hf_gradkit.EntanglementCallback`]).
        monitor_steps (`int`, defaults to 10): watch every so many optimizer steps.
    """

    monitors: list[str] | None = field(
        default=None, metadata={"help": "What to watch while training: 'entanglement'."}
    )
    monitor_steps: int = field(default=10, metadata={"help": "Watch every so many optimizer steps."})

    def __post_init__(self):
        for name in self.monitors or []:
            if name not in MONITORS:
                raise ValueError(
                    f"`monitors` has {name!r}, which there is not.{did_you_mean(name, MONITORS)} There are: "
                    f"{listing(MONITORS)}."
                )
        build_monitors(self, None)  # says now what is wrong with the options
        super().__post_init__()


def build_monitors(args: Any, trainer: Any) -> list[Any]:
    """Return the callbacks that a configuration asks for; TRL's own configurations ask for none."""
    from ..callbacks.entanglement import EntanglementCallback

    classes = {"entanglement": EntanglementCallback}
    names = getattr(args, "monitors", None) or []
    return [classes[name](monitor_steps=args.monitor_steps, trainer=trainer) for name in names]
