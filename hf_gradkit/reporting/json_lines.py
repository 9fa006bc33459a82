"""Files of figures, one line of JSON a monitored step, as monitors write them."""

import json
from pathlib import Path
from typing import Any


def read_json_lines(path: str | Path) -> list[dict[str, Any]]:
    """Return the lines of a file, but for a last one that was not written to its end; none if there is no file.

    Raises:
        ValueError: if another line is not what a monitor writes; the message names file and line.
    """
    path = Path(path)
    if not path.is_file():
        return []
    *lines, last = path.read_bytes().split(b"\n")  # after the last line break: nothing, or what a kill left
    read = [_line(path, number, text) for number, text in enumerate(lines, 1) if text.strip()]
    try:
        return [*read, _line(path, 0, last)] if last.strip() else read
    except ValueError:
        return read


def _line(path: Path, number: int, text: bytes) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except ValueError:
        line = None
    if not isinstance(line, dict) or "step" not in line:
        raise ValueError(
            f"Line {number} of {path} is not one that a monitor writes: a JSON object with a `step`. The file was "
            "changed or harmed: take the line out, or move the file elsewhere."
        )
    return line
