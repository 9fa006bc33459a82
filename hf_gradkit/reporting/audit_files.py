"""Writes the files of a privacy audit: page, Markdown, JSON and a table of examples, for their owner alone."""

import html
import importlib.util
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..data.private_files import make_private_folder, private_file, write_private
from .audit_blocks import Block, extraction_blocks, membership_blocks
from .audit_words import extraction_findings, membership_findings
from .page import STYLE, _png

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
    write_private(paths["page"], page(title, blocks))
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
    return "\n".join([*lines, "", "Measured with `gradkit audit` on examples that were held out at random.", ""])


def markdown(title: str, blocks: list[Block]) -> str:
    """Return a report as Markdown; greyed cells are in parentheses."""
    parts = [f"# {title}"]
    for block in blocks:
        parts.append(f"## {block.title}")
        parts += block.text
        if block.rows:
            lines = [_line(block.headings), _line(tuple("---" for _ in block.headings))]
            lines += [
                _line(tuple(f"({cell[1:]})" if cell.startswith("~") else cell for cell in row)) for row in block.rows
            ]
            parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _line(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def page(title: str, blocks: list[Block]) -> str:
    """Return a report as one page of HTML with its pictures inside; it loads nothing."""
    drawn = importlib.util.find_spec("matplotlib") is not None
    parts = []
    for block in blocks:
        parts.append(f"<h2>{html.escape(block.title)}</h2>")
        parts += [f"<p>{html.escape(paragraph)}</p>" for paragraph in block.text]
        if block.rows:
            parts.append(_html_table(block))
        if block.draw is not None and drawn:
            image = _png(block.draw())
            parts.append(f'<p><img alt="{html.escape(block.title)}" src="data:image/png;base64,{image}"></p>')
    if not drawn:
        parts.append("<p class='none'>Pictures need matplotlib: pip install \"hf-gradkit[plots]\".</p>")
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<link rel="icon" href="data:,"><style>{STYLE}</style></head>\n<body><h1>{html.escape(title)}</h1>\n{body}\n'
        "</body></html>\n"
    )


def _html_table(block: Block) -> str:
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in block.headings)
    lines = []
    for row in block.rows:
        cells = [
            f'<td class="n none">{html.escape(cell[1:])}</td>'
            if cell.startswith("~")
            else f'<td class="n">{html.escape(cell)}</td>'
            for cell in row
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"
