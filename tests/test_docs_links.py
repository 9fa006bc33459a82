"""Every link inside the repository leads to a file, and to a heading that is there."""

import pytest

from documents import ROOT, anchors, links, pages

PAGES = pages("docs", "recipes", "benchmarks")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for line, link in links(page):
        if link.startswith(("https://", "mailto:")):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{page.relative_to(ROOT)}:{line}: there is no {link}"
        assert target.is_relative_to(ROOT), f"{page.relative_to(ROOT)}:{line}: {link} leaves the repository"
        if anchor:
            assert anchor in anchors(target), f"{page.relative_to(ROOT)}:{line}: {file} has no heading {anchor}"


def test_every_recipe_is_in_the_table_of_recipes():
    table = ROOT / "recipes" / "README.md"
    linked = {(table.parent / link).resolve() for _, link in links(table)}
    assert linked == {path for path in (ROOT / "recipes").rglob("README.md") if path != table}


def test_every_page_is_reached_from_the_readme():
    reached, open_pages = set(), [ROOT / "README.md"]
    while open_pages:
        page = open_pages.pop()
        if page in reached:
            continue
        reached.add(page)
        for _, link in links(page):
            target = (page.parent / link.partition("#")[0]).resolve()
            if "://" not in link and target.suffix == ".md" and target.exists():
                open_pages.append(target)
    missing = {page for page in pages("docs", "recipes") if page not in reached}
    assert not missing, f"no link leads to {sorted(str(page.relative_to(ROOT)) for page in missing)}"


def test_headings_and_links_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# What `x` does: a [b](c.md), d\n\n## Same\n\n## Same\n\n[one\ntwo](e.md#f) `[no](g.md)`\n")
    assert anchors(page) == {"what-x-does-a-b-d", "same", "same-1"}
    assert links(page) == [(1, "c.md"), (7, "e.md#f")]
