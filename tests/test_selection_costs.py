"""What docs/selection.md says selection costs is what the benchmarks wrote."""

import json
from statistics import median

import pytest

from documents import ROOT

PAGE = (ROOT / "docs/selection.md").read_text()
RESULTS = ROOT / "docs/results"


def row(begins: str) -> list[str]:
    """Return the cells of the table row that begins so, less the first."""
    (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| {begins}")]
    return [cell.strip() for cell in line.strip("|").split("|")[1:]]


def figures(name: str) -> dict:
    return json.loads((RESULTS / name).read_text())


@pytest.mark.parametrize(
    ("begins", "name", "seconds", "ratio"),
    [
        ("all of 20,000 rows", "cpu_20k", "cpu_seconds", "cpu_ratio"),
        ("10,000 of 100,000 rows", "cpu_100k", "seconds", "ratio"),
    ],
)
def test_exact_neighbours(begins, name, seconds, ratio):
    found = figures(f"neighbours/{name}.json")
    times = [f"{median(found[seconds][arm]):.1f} s" for arm in ("hf_gradkit", "scikit-learn")]
    spread = found[ratio]
    assert row(begins) == [*times, f"{spread['median']:.2f}, {spread['least']:.2f} to {spread['most']:.2f}"]
    assert found["largest_difference"] < 5.05e-8


@pytest.mark.parametrize(
    ("begins", "name", "points"),
    [
        ("20,000 x 384 around 200 centres", "recall_20k", "centres"),
        ("20,000 x 384 in all directions", "recall_20k", "sphere"),
        ("7,473 x 256", "recall_20k", "prompts"),
        ("100,000 x 384 in all directions", "recall_100k", "sphere"),
    ],
)
def test_what_faiss_misses(begins, name, points):
    found = figures(f"neighbours/{name}.json")["sets"][points]
    assert begins.startswith(f"{found['rows']:,} x {found['dimension']}")
    assert row(begins) == [
        f"{found['recall']:.3f}",
        f"{found['inflation']:.3f}",
        f"{abs(found['nats']):.1f} nats",
        f"{found['rank_correlation']:.3f}",
        f"{found['farthest_tenth_shared']:.0%}".replace("%", " %"),
        ", ".join(f"{found['seconds'][search]['cpu']:.1f} s" for search in ("faiss", "exact")),
    ]


def test_all_of_100_000_rows():
    seconds = figures("neighbours/recall_100k.json")["sets"]["sphere"]["seconds"]["exact"]
    assert f"{seconds['cpu']:.0f} s of CPU time" in PAGE
    assert f"{seconds['wall']:.0f} s on the clock" in PAGE


@pytest.mark.parametrize(("begins", "name"), [("1,000 pairs", "cpu"), ("3,000 pairs", "cpu_3000_greedy")])
def test_rows_a_second(begins, name):
    found = figures(f"selection_throughput/{name}.json")
    parts = dict(found["seconds"])
    parts["rest"] += parts.pop("report")
    total = sum(parts.values())
    shares = [f"{parts[part] / total:.0%}" for part in ("margin", "quality", "embedder")]
    shares += [f"{parts['neighbours'] / total:.1%}", f"{parts['rest'] / total:.0%}"]
    said = [share.replace("%", " %") for share in shares]
    assert row(begins) == [f"{found['rows_per_second']:.0f}", *said]
