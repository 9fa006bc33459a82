"""Writes the files of a privacy audit: page, Markdown, JSON and a table of examples, for their owner alone."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..data.private_files import make_private_folder, private_file, write_private
from .audit_blocks import extraction_blocks, membership_blocks
from .audit_words import extraction_findings, membership_findings
from .blocks import html_page, markdown

BLOCKS = {"membership": membership_blocks, "extraction": extraction_blocks}
FINDINGS = {"membership": membership_findings, "extraction": extraction_findings}


def write_audit(figures: dict[str, Any], examples: dict[str, Any], folder: str | Path) -> dict[str, Path]:
    """Write an audit's files, each with mode 600, and return where they are, by kind.

    `<audit>.json` has the figures, `<audit>.md` and `<audit>.html` the report, `<audit>_examples.parquet` one row an
    example. The page has pictures where matplotlib is installed.

    Args:
        figures: of a membership or an extraction audit.
        examples: columns of the table of examples: hashes and figures, and texts only if they were asked for.
        folder: where to; made for the owner alone when missing.
    """
    folder = make_private_folder(folder)
    kind = figures["audit"]
    blocks = BLOCKS[kind](figures)
    title = f"Privacy audit, {kind}: {figures['model']}"
    paths = {
        "page": folder / f"{kind}.html",
        "text": folder / f"{kind}.md",
        "figures": folder / f"{kind}.json",
        "examples": folder / f"{kind}_examples.parquet",
    }
    with private_file(paths["examples"]) as temporary:
        pq.write_table(pa.table(examples), temporary)
    write_private(paths["figures"], json.dumps(figures, indent=1) + "\n")
    write_private(paths["text"], markdown(title, blocks))
    write_private(paths["page"], html_page(title, blocks))
    return paths


def card_section(figures: list[dict[str, Any]]) -> str:
    """Return a short section for a model card: figures of audits alone, in Markdown."""
    lines = ["## Privacy audit", ""]
    for of in figures:
        if of.get("unsound") or of.get("confounded"):
            stamp = "unsound" if of.get("unsound") else "confounded"
            lines.append(f"- {of['audit']}: the audit is {stamp}, so it says nothing about this model.")
        else:
            lines += [f"- {sentence}" for sentence in FINDINGS[of["audit"]](of)]
    sound = not any(of.get("unsound") for of in figures)
    which = "were held out at random before training" if sound else "no recorded hold-out made"
    return "\n".join([*lines, "", f"Measured with `gradkit audit` on examples that {which}.", ""])
