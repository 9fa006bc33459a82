"""Small pieces of Markdown that pages are made of."""

import json
from pathlib import Path
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


def number(value: float) -> str:
    """Return a number as people read it."""
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def value_of(setting: Any) -> str:
    """Return a setting's value as it stands in a YAML or JSON file, on one line."""
    return without_home(setting if isinstance(setting, str) else json.dumps(setting, default=str))


def without_home(text: str) -> str:
    """Return a text with the user's home folder written as ~."""
    home = str(Path.home())
    return text if home in ("/", "") else text.replace(home, "~")


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")
