"""Small pieces of Markdown that pages are made of."""

import json
import re
import shlex
from typing import Any


def table(headings: list[str], rows: list[list[str]]) -> str:
    """Return a table as Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def code(text: str, language: str = "") -> str:
    """Return a block of code, whatever backticks are in it."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text.strip(chr(10))}\n{fence}"


def number(value: float | None) -> str:
    """Return a number as people read it."""
    return "none" if value is None else str(value) if isinstance(value, int) else f"{value:.4g}"


def value_of(setting: Any) -> str:
    """Return a setting's value as it stands in a YAML or JSON file, on one line."""
    return without_paths(setting if isinstance(setting, str) else json.dumps(setting, default=str))


# An absolute path of two names or more, or one below a home folder; not what comes after a host's name.
_NAME = r"[^/\s'\"`,;:\]})]+"
_PATH = re.compile(rf"(?<![\w./~:-])(?:~\w*|/{_NAME})(?:/{_NAME})+/?")


def without_paths(text: str) -> str:
    """Return a text with `.../name` for each absolute path: where things lie on a machine is nobody's business."""
    return _PATH.sub(lambda found: _short(found[0]), text)


def command_without_paths(command: str) -> str:
    """Return a command line with `.../name` for each absolute path, also for one with spaces in it."""
    words = [_short(word) if word.startswith(("/", "~/")) else without_paths(word) for word in shlex.split(command)]
    return shlex.join(words)


def _short(path: str) -> str:
    return f".../{path.rstrip('/').rpartition('/')[2]}"


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")
