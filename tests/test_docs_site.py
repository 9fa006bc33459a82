"""The documentation builds into a site without a warning, every page is in it, and the API reference is complete."""

import importlib
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from documents import ROOT, pages

REFERENCE = ROOT / "docs" / "reference"
PUBLIC = ("", ".audit", ".audit.attacks", ".callbacks", ".gradients", ".objectives", ".scoring", ".selection")
PUBLIC += (".reporting", ".weighting")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    config = ROOT / "docs" / "site" / "mkdocs.yml"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(config)]
    built = subprocess.run([*command, "--site-dir", str(folder)], capture_output=True, text=True, timeout=240)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


class Page(HTMLParser):
    """The links, images and anchors of a built page."""

    def __init__(self, path: Path):
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if "id" in found:
            self.anchors.add(found["id"])
        target = found.get("href" if tag in ("a", "link") else "src")
        if target and not urlsplit(target).scheme and not target.startswith("//"):
            self.targets.append(target)


def test_built_pages_lead_to_built_pages(site):
    built = {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(built) > 60
    for path, page in built.items():
        for target in page.targets:
            parts = urlsplit(target)
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            file = file / "index.html" if file.is_dir() else file
            assert file.exists(), f"{path.relative_to(site)} leads to {target}"
            if parts.fragment and file in built:
                known = built[file].anchors | {"__toc", "__drawer", "__search"}
                assert unquote(parts.fragment) in known, f"{path.relative_to(site)} leads to {target}"


def test_nothing_is_loaded_from_elsewhere(site):
    for path in site.rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)="(https?://[^"]+)', path.read_text()
        )
        assert not loaded, f"{path.relative_to(site)} loads {loaded}"


def test_every_page_is_in_the_navigation_or_listed():
    text = (ROOT / "docs" / "site" / "mkdocs.yml").read_text()
    named = set(re.findall(r"[\w/]+\.md", str(yaml.safe_load(text[text.index("\nnav:") :]))))
    own = {path.relative_to(ROOT).as_posix() for path in pages("docs") if "results" not in path.parts}
    assert own == named


@pytest.mark.parametrize("package", PUBLIC)
def test_the_reference_has_every_public_name(package, site):
    module = importlib.import_module(f"hf_gradkit{package}")
    text = "".join(path.read_text() for path in REFERENCE.glob("*.md"))
    shown = "".join(path.read_text() for path in (site / "docs" / "reference").rglob("*.html"))
    for name in module.__all__:
        value = getattr(module, name)
        if not callable(value):
            continue  # tables of names
        home = [f"hf_gradkit.{name}", f"hf_gradkit{package}.{name}"]
        found = [path for path in home if f"::: {path}\n" in text]
        assert found, f"docs/reference has no ::: {home[-1]}"
        assert f'id="{found[0]}"' in shown


def test_docstrings_of_public_names_are_there():
    for package in PUBLIC:
        module = importlib.import_module(f"hf_gradkit{package}")
        for name in module.__all__:
            value = getattr(module, name)
            assert not callable(value) or (value.__doc__ or "").strip(), f"{module.__name__}.{name}"
