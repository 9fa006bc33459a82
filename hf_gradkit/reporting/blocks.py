"""What reports are made of: blocks of text, tables and pictures, written as one page of HTML or as Markdown."""

import base64
import html
import importlib.util
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; } p { max-width: 48rem; }
table { border-collapse: collapse; } th, td { padding: .25rem .8rem .25rem 0; text-align: left; }
th { border-bottom: 1px solid #999; } td.n { font-variant-numeric: tabular-nums; } img { max-width: 100%; }
code { background: #f2f2f2; padding: 0 .2em; } .none { color: #888; }
"""
GREY = "~"  # at the start of a cell or a paragraph


@dataclass(frozen=True)
class Block:
    """A part of a report: a heading, and below it paragraphs, a table, a picture.

    Attributes:
        title: its heading; "" for none.
        text: paragraphs; one that begins with "~" is greyed out.
        headings: of the table's columns.
        rows: of the table; a cell that begins with "~" is greyed out.
        draw: makes the picture, or None.
        folded: whether the page shows only the heading until it is clicked.
    """

    title: str
    text: tuple[str, ...] = ()
    headings: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    draw: Callable[[], Any] | None = None
    folded: bool = False


def html_page(title: str, blocks: list[Block]) -> str:
    """Return a report as one page of HTML with its pictures inside; it loads nothing."""
    drawn = importlib.util.find_spec("matplotlib") is not None
    parts = [_html(block, drawn) for block in blocks]
    if not drawn and any(block.draw is not None for block in blocks):
        parts.append("<p class='none'>Pictures need matplotlib: pip install \"hf-gradkit[plots]\".</p>")
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<link rel="icon" href="data:,"><style>{STYLE}</style></head>\n<body><h1>{html.escape(title)}</h1>\n{body}\n'
        "</body></html>\n"
    )


def _html(block: Block, drawn: bool) -> str:
    title = html.escape(block.title)
    parts = [f"<h2>{title}</h2>"] if block.title and not block.folded else []
    for paragraph in block.text:
        style, words = _grey(paragraph)
        parts.append(f"<p{style}>{html.escape(words)}</p>")
    if block.rows:
        head = "".join(f"<th>{html.escape(heading)}</th>" for heading in block.headings)
        parts.append(f"<table><tr>{head}</tr>{''.join(map(_html_row, block.rows))}</table>")
    if block.draw is not None and drawn:
        parts.append(f'<p><img alt="{title}" src="data:image/png;base64,{_png(block.draw())}"></p>')
    body = "".join(parts)
    return f"<details><summary>{title}</summary>{body}</details>" if block.folded else body


def _html_row(row: tuple[str, ...]) -> str:
    cells = []
    for cell in row:
        greyed = cell.startswith(GREY)
        cells.append(f'<td class="{"n none" if greyed else "n"}">{html.escape(cell[greyed:])}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _grey(text: str) -> tuple[str, str]:
    return (' class="none"', text[1:]) if text.startswith(GREY) else ("", text)


def _png(figure: Any) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return base64.b64encode(buffer.getvalue()).decode()


def markdown(title: str, blocks: list[Block], picture: Callable[[str, Any], str] | None = None) -> str:
    """Return a report as Markdown; what is greyed out on a page is in parentheses.

    Args:
        title: of the report.
        blocks: of the report.
        picture: saves a figure under a block's title and returns the link to it; without it there are no pictures.
    """
    parts = [f"# {title}"]
    for block in blocks:
        parts += [f"## {block.title}"] if block.title else []
        parts += [f"({text[1:]})" if text.startswith(GREY) else text for text in block.text]
        if block.rows:
            lines = [_line(block.headings), _line(tuple("---" for _ in block.headings))]
            lines += [
                _line(tuple(f"({cell[1:]})" if cell.startswith(GREY) else cell for cell in row)) for row in block.rows
            ]
            parts.append("\n".join(lines))
        if block.draw is not None and picture is not None:
            parts.append(f"![{block.title}]({picture(block.title, block.draw())})")
    return "\n\n".join(parts) + "\n"


def _line(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"
