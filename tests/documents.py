"""Takes the documentation apart: its pages, code blocks, command lines, links and headings."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ("accelerate", "cd", "gradkit", "make", "pip", "python", "sbatch", "torchrun")
FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: the file.
        line: number of its first line, the fence.
        language: the word after the fence, or "".
        text: what is between the fences.
        title: what else stands on the fence, such as the name of the file that the block is.
    """

    page: Path
    line: int
    language: str
    text: str
    title: str = ""

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A command line of a page, with continuations joined and its comment taken off.

    Attributes:
        page: the file.
        line: number of the line.
        words: the program and its arguments.
        section: how many headings are above it.
    """

    page: Path
    line: int
    words: tuple[str, ...]
    section: int = 0

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}: {shlex.join(self.words)}"


def pages(*folders: str) -> list[Path]:
    """Return the README and the Markdown files of these folders."""
    return [ROOT / "README.md", *(path for folder in folders for path in sorted((ROOT / folder).rglob("*.md")))]


def blocks(page: Path, language: str) -> list[Block]:
    """Return the fenced blocks in a language, without those that are a file of the repository."""
    text = page.read_text(encoding="utf-8")
    found = [Block(page, _line(text, m.start()), m[1], m[3], m[2].strip()) for m in FENCE.finditer(text)]
    return [block for block in found if block.language == language and not block.title]


def commands(page: Path) -> list[Command]:
    """Return the lines of indented blocks, and of fenced ones without a language or in `bash`, that start a program.

    An indented line is code after an empty line or another line of code, as in Markdown; text of a list is not.
    """
    found, code, fence, before, section = [], False, None, "", 0
    lines = iter(enumerate(page.read_text(encoding="utf-8").splitlines(), 1))
    for number, line in lines:
        if line.startswith("```"):
            fence = line[3:].strip() if fence is None else None
            continue
        code = line.startswith("    ") and (code or not before.strip()) if line.strip() else code
        before = line
        section += fence is None and line.startswith("#")
        if not (code if fence is None else fence in ("", "bash")):
            continue
        while line.endswith("\\"):
            line = line[:-1] + next(lines)[1].strip()
        if line.split()[:1] and line.split()[0] in PROGRAMS:
            found.append(Command(page, number, tuple(shlex.split(line, comments=True)), section))
        elif fence == "bash" and line.strip():
            raise ValueError(f"{page}:{number}: {line.strip()!r} starts no program of {PROGRAMS}.")
    return found


def spans(page: Path) -> list[Command]:
    """Return the pieces of a sentence, in backticks, that begin with `gradkit`: parts of a command, mostly."""
    text = FENCE.sub(lambda match: "\n" * match[0].count("\n"), page.read_text(encoding="utf-8"))
    text = re.sub(r"^    .*$", "", text, flags=re.MULTILINE)
    return [
        Command(page, _line(text, match.start()), tuple(shlex.split(match[1])))
        for match in SPAN.finditer(text)
        if match[1].startswith("gradkit ")
    ]


def links(page: Path) -> list[tuple[int, str]]:
    """Return the line and the target of each link and image outside code."""
    text = FENCE.sub(lambda match: "\n" * match[0].count("\n"), page.read_text(encoding="utf-8"))
    text = SPAN.sub("", text)
    # A link's text may go over a line's end.
    return [(_line(text, match.start()), match[1]) for match in LINK.finditer(text)]


def anchors(page: Path) -> set[str]:
    """Return the names by which a page's headings are linked, as GitHub makes them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.+?) *#*$", text, re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        count = 1
        while slug in found:
            slug, count = f"{slug.removesuffix(f'-{count - 1}')}-{count}", count + 1
        found.add(slug)
    return found


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1
