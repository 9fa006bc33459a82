"""Lays the pages out for the site as they lie in the repository, so that their links work on both."""

import os
import re
import shutil
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = tempfile.TemporaryDirectory(prefix="hf_gradkit_site_")  # a folder of its own for each build at a time
STAGED = Path(FOLDER.name).resolve() / "source"
FOLDERS = ("docs", "recipes", "benchmarks")
# Sections of pages that come and go, listed by what is there.
LISTED = {
    "Recipes": "recipes/**/README.md",
    "Results": "docs/results/*.md",
    "Studies": "benchmarks/studies/*/README.md",
}


def on_config(config):
    """Copy what the site shows, and add the listed sections to the navigation."""
    shutil.rmtree(STAGED, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__", "site")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, STAGED / folder, ignore=ignored)
    for name in ("README.md", "LICENSE"):
        shutil.copy(ROOT / name, STAGED / name)
    config["docs_dir"] = str(STAGED)
    for section, pattern in LISTED.items():
        pages = [path.relative_to(STAGED).as_posix() for path in sorted(STAGED.glob(pattern))]
        config["nav"].insert(-2, {section: pages})
    return config


def on_page_markdown(markdown, page, config, files):
    """Links to folders lead to the folder's README, or to the one above it."""

    def readme(match):
        target = (STAGED / page.file.src_uri).parent / match[2]
        if "://" in match[2] or not target.is_dir():
            return match[0]
        folder = next(up for up in (target, *target.parents) if (up / "README.md").is_file())
        return f"{match[1]}({os.path.relpath(folder / 'README.md', (STAGED / page.file.src_uri).parent)})"

    return re.sub(r"(\])\(([^()\s#]+)\)", readme, markdown)


def on_page_content(html, page, config, files):
    """Docstrings name classes as [`Name`], which editors make links of; here the brackets would be left over."""
    if "/reference/" not in page.file.src_uri:
        return html
    return re.sub(r"\[(<code>[\w.]+</code>)\]", r"\1", html)
