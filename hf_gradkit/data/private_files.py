"""Files about people's data: read and written by their owner alone, and never seen half written.

Names that begin with an underscore stay here when transformers' Trainer pushes its folder to the Hub.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

MODE = 0o600  # the owner reads and writes


@contextlib.contextmanager
def private_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary file of the owner's alone, which takes the place of `path` when it is written.

    Folders that are missing are made, for the owner alone as well.
    """
    path = Path(path)
    make_private_folder(path.parent)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    # The mode goes with the file from its first byte on; a mask of the user's can only narrow it.
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, MODE))
    os.chmod(temporary, MODE)  # one that was left behind may be open to others
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_private(path: str | os.PathLike, content: str) -> None:
    """Write a text file for its owner alone."""
    with private_file(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def make_private_folder(folder: str | os.PathLike) -> Path:
    """Make a folder for its owner alone, where there is none; those above it are made as usual."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder
