"""The pictures of a page: those of `gradkit report`, as files."""

import os
import re
from pathlib import Path

from ..reporting.runs import Run

FOLDER = "images"
LEFT_OUT = ("Privacy audit",)  # the page has its figures in words


def draw(run: Run, folder: Path) -> list[tuple[str, str, str]]:
    """Draw what a run logged into `images` of a folder, each picture whole or not at all.

    Returns:
        Of each picture its title, what one sees, and its path in the folder.

    Raises:
        ImportError: if matplotlib is missing; the message says what to install.
    """
    from ..reporting.figures import require_matplotlib
    from ..reporting.sections import FURTHER_SECTIONS, SECTIONS

    require_matplotlib()
    drawn = []
    for title, text, figure_of in (*SECTIONS, *FURTHER_SECTIONS):
        if not run.history or title in LEFT_OUT:
            continue
        try:
            figure = figure_of([run])
        except (ValueError, KeyError) as error:  # a log that was cut off, such as by a full disk
            print(f"The page has no picture {title!r}: its log cannot be read ({type(error).__name__}: {error}).")
            continue
        if figure is None:
            continue
        path = Path(FOLDER) / (re.sub(r"\W+", "_", title.lower()) + ".png")
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        temporary = folder / FOLDER / f"{path.name}.tmp"
        figure.savefig(temporary, format="png", dpi=110)
        os.replace(temporary, folder / path)
        drawn.append((title, text, path.as_posix()))
    return drawn
