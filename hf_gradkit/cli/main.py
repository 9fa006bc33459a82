"""`gradkit`: finds the command that was asked for and hands it the rest of the line."""

import importlib
import sys
from dataclasses import dataclass

from .. import __version__
from .._text import did_you_mean, listing
from .errors import USER_ERRORS, report


@dataclass(frozen=True)
class Command:
    """One subcommand: `main(argv) -> int` of a module, which is imported when the command is called.

    Attributes:
        module: where `main` is.
        help: one line about it.
        job: whether it trains, and so can be started as several processes.
    """

    module: str
    help: str
    job: bool = False


COMMANDS = {
    "sft": Command("hf_gradkit.cli.sft", "fine-tune a language model, with example weights", job=True),
    "dpo": Command("hf_gradkit.cli.dpo", "train on preference pairs: DPO, MADPO, RPO, beta-DPO", job=True),
    "reward": Command("hf_gradkit.cli.reward", "train a reward model on preference pairs", job=True),
    "score": Command("hf_gradkit.cli.score", "score a data set with a model: rewards, loss, EL2N, GraNd", job=True),
    "select": Command("hf_gradkit.cli.select", "keep the rows worth training on: FiFA and others", job=True),
    "audit": Command("hf_gradkit.cli.audit", "privacy: membership inference, extraction, and the hold-out", job=True),
    "demo": Command("hf_gradkit.cli.demo", "watch a tiny model train, offline: what the usual logs do not say"),
    "report": Command("hf_gradkit.cli.report", "make one page from the logs of a run"),
    "push": Command("hf_gradkit.cli.push", "publish a model, a selection or scores on the Hub, with its page"),
    "recipes": Command("hf_gradkit.cli.recipes", "list the recipes, print one, or copy it"),
    "env": Command("hf_gradkit.cli.env", "print versions, devices and which extras are installed"),
}


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand and return its exit code: 0, or 2 for a mistake in the command, a file or the data."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(_usage())
        return 0
    if name == "--version":
        print(f"gradkit {__version__}")
        return 0
    try:
        command = COMMANDS.get(name)
        if command is None:
            raise ValueError(
                f"There is no command {name!r}.{did_you_mean(name, COMMANDS)} Commands: {listing(COMMANDS)}."
            )
        if command.job:
            from .origin import noted  # imports YAML, which --help does without

            with noted(name, rest):
                return importlib.import_module("hf_gradkit.cli.launch").main(name, command.module, rest)
        return importlib.import_module(command.module).main(rest)
    except USER_ERRORS as error:
        return report(error)


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: gradkit COMMAND [options]",
            "",
            "See and steer what your data does to the model.",
            "",
            *lines,
            "",
            "`gradkit COMMAND --help` says more. A first run, with no download: gradkit demo",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
