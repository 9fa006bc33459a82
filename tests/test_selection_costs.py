"""What docs/selection.md says selection costs is what the benchmarks wrote."""

import json
import os
import re
import subprocess
import sys
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


def cost(found: dict) -> tuple[str, list[str]]:
    """Return how the row of a run of benchmarks/neighbours.py begins, and its cells."""
    assert found["queries"] == found["rows"]
    times = [f"{median(found['cpu_seconds'][arm]):.1f} s" for arm in ("hf_gradkit", "scikit-learn")]
    spread = found["cpu_ratio"]
    ratio = f"{spread['median']:.2f}, {spread['least']:.2f} to {spread['most']:.2f}"
    return f"all of {found['rows']:,} rows, CPU time (", [*times, ratio]


@pytest.mark.parametrize(("name", "turns"), [("cpu_20k", 5), ("cpu_100k", 3)])
def test_exact_neighbours(name, turns):
    found = figures(f"neighbours/{name}.json")
    begins, cells = cost(found)
    assert row(begins) == cells
    assert f"| {begins}[figures](results/neighbours/{name}.json)) |" in PAGE
    (said,) = re.findall(r"the same distances to (\S+);", PAGE)
    assert found["largest_difference"] <= 1.01 * float(said)
    assert found["cpu_ratio"]["most"] < 1  # "at least as fast"
    assert "medians of five turns and of three" in PAGE
    assert {len(times) for times in found["seconds"].values()} == {turns}


def test_the_commands_of_the_neighbours_are_in_the_script():
    script = (ROOT / "benchmarks/neighbours.py").read_text()
    for name in ("cpu_20k", "cpu_100k", "cpu_100k_faiss"):
        command = figures(f"neighbours/{name}.json")["command"].partition(" --json")[0]
        assert re.search(rf"^    {re.escape(command)}( +#.*)?$", script, re.M), command


def test_what_the_script_writes_fits_the_table(tmp_path):
    """The keys that are read here are those that a run of today writes, CPU times among them."""
    pytest.importorskip("sklearn")
    pytest.importorskip("threadpoolctl")
    command = [sys.executable, str(ROOT / "benchmarks/neighbours.py"), "--rows", "300", "--json", str(tmp_path / "a")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    found = json.loads((tmp_path / "a").read_text())
    begins, cells = cost(found)
    assert begins == "all of 300 rows, CPU time ("
    assert len(cells) == 3
    assert {len(times) for times in found["cpu_seconds"].values()} == {5}


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
