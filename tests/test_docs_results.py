"""What the pages of results say is what the files beside them hold."""

import json
import subprocess
import sys
from pathlib import Path

from documents import ROOT

FOLDER = ROOT / "docs" / "results" / "selection"


def test_the_tables_of_the_selection_study_are_those_of_its_files():
    script = ROOT / "benchmarks" / "studies" / "selection" / "tables.py"
    printed = subprocess.run([sys.executable, str(script), str(FOLDER)], capture_output=True, text=True, check=True)
    rows = [line for line in _page().splitlines() if line.startswith("| `")]
    assert len(rows) > 60
    assert not {*rows} - {*printed.stdout.splitlines()}


def test_what_is_said_of_agreement_over_training_is_in_the_file():
    arms = json.loads((FOLDER / "known_truth_details.json").read_text())
    found = {arm: row["agreement"] for arm, row in arms.items()}
    page = " ".join(_page().split())

    def curve(arm: str, *steps: str) -> list[str]:
        return [f"{found[arm]['curve'][step]['mean']:.3f}"[1:] for step in steps]

    assert "from {} at step 10 to {} at step 80 and ends at {}".format(*curve("full", "10", "80", "120")) in page
    assert "falls from {} at step 40 to {} at the end".format(*curve("random-0.05", "40", "120")) in page
    kinds = (curve(f"{arm}-0.1", "120")[0] for arm in ("fifa_modular", "fifa_greedy"))
    assert "at 10 % rise to {} and {}".format(*kinds) in page

    of_all, above, below = _outside(found, "to_full")
    late = sum(step in ("80", "120") for _, step in below)
    assert f"of {of_all} differences" in page
    assert f"{len(below)} intervals lie wholly below zero and none above, {late} of the {len(below)}" in page
    assert not above
    of_all, above, below = _outside(found, "to_random")
    diverse = sum(arm.startswith("diversity") for arm, _ in below)
    assert f"{len(above)} of {of_all} lie above" in page
    assert f"and {len(below)} below, {diverse} of these of diversity alone" in page
    assert above == [("fifa_modular-0.05", "120"), ("fifa_greedy-0.05", "80")]

    reached = {arm: 5 - row["steps_to_full"].count(None) for arm, row in found.items() if arm != "full"}
    assert max(reached, key=reached.get) == "random-0.1"
    assert reached["random-0.1"] == 3
    assert sorted(reached.values())[-2] < 3
    assert not any(n for arm, n in reached.items() if arm.startswith(("margin", "fifa_greedy")))
    assert [arm for arm, n in reached.items() if arm.startswith("fifa_modular") and n] == ["fifa_modular-0.25"]


def test_what_is_said_of_the_cost_of_selecting_is_in_the_file():
    file = json.loads((FOLDER / "known_truth_cost.json").read_text())
    share = {name: row["of_training"]["mean"] for name, row in file["parts"].items()}
    assert share.pop("DPO on all pairs") == 1
    margins, page = share.pop("cross-fitted margins"), " ".join(_page().split())
    assert f"take {margins:.2f} runs, or {margins * file['steps']:.0f} steps" in page
    least, most = (f"{f(share.values()):.3f}"[1:] for f in (min, max))
    assert f"{least} to {most} of a run for every arm at 1 to 25 %" in page
    with_margins = [share[arm] for arm in share if arm.startswith(("margin", "fifa"))]
    assert all(3.7 < 1 + margins + of_arm < 4 for of_arm in with_margins)
    least, most = (f"{f(with_margins):.3f}"[1:] for f in (min, max))
    assert f"they take {least} to {most} of a run more" in page
    assert len(file["turns"]) == 5
    assert len(share) == 24


def test_what_is_said_of_matching_all_pairs_is_in_the_file():
    """No effect shown is not shown to be equal: such a selection is undecided."""
    arms = _arms("known_truth.json")
    differences = [row["to_full"] for arm, row in arms.items() if arm != "full"]
    worse = sum(difference["high"] < 0 for difference in differences)
    assert not any(difference["low"] > 0 for difference in differences)
    undecided = len(differences) - worse
    said = (
        f"none was shown to match all pairs: of {len(differences)} selections {worse} are worse, and of {undecided} it"
    )
    assert said in _words(FOLDER.with_suffix(".md"))
    docs = ROOT / "docs"
    assert f"was shown to match all pairs ({worse} of {len(differences)} were worse, {undecided} undecided)" in _words(
        docs / "selection.md"
    )
    for page in (ROOT / "README.md", *docs.glob("*.md"), FOLDER.with_suffix(".md")):
        assert "matched all" not in _words(page), page


def test_what_is_said_of_reaching_the_last_reward_of_all_pairs_is_in_the_file():
    arms = _arms("known_truth.json")
    early = {arm: sum(step not in (None, 120) for step in row["steps_to_full"]) for arm, row in arms.items()}
    said = {"fifa_modular-0.05": 2, "fifa_modular-0.1": 2, "fifa_modular-0.25": 3, "margin-0.25": 3}
    said |= {"fifa_greedy-0.05": 1, "fifa_greedy-0.25": 2, "random-0.25": 1, "quality-0.25": 1, "full": 2}
    assert {arm: number for arm, number in early.items() if number} == said
    page = _words(FOLDER.with_suffix(".md"))
    assert (
        "`fifa_modular` does in 2 of 5 seeds at 5 and 10 % and in 3 of 5 at 25 %, `margin` in 3 of 5 at 25 %" in page
    )
    assert "`fifa_greedy` in 1 of 5 at 5 % and 2 of 5 at 25 %" in page
    assert "random and quality in 1 of 5 at 25 %. All pairs themselves have it before the end in 2 of 5" in page


def test_what_is_said_of_quality_and_diversity_beside_the_margin_is_in_the_file():
    """The differences of the means are there, no figures of single seeds: nothing is claimed of the difference."""
    arms = json.loads((FOLDER / "human.json").read_text())["arms"]
    mean = {arm: row["judge"]["mean"]["mean"] for arm, row in arms.items()}
    found = [f"{mean[f'fifa_modular-{size}'] - mean[f'margin-{size}']:.2f}" for size in (0.1, 0.25, 0.5)]
    page = _words(FOLDER.with_suffix(".md"))
    assert "`fifa_modular` minus `margin` is {}, {} and {} at 10, 25 and 50 %".format(*found) in page
    assert "quality and diversity are not shown to add" in page
    assert "add nothing" not in page
    for size in (0.1, 0.25, 0.5):
        assert max((arm for arm in mean if arm.endswith(f"-{size}")), key=mean.get) == f"margin-{size}"
    assert not any("seeds" in row["judge"] for row in arms.values())  # with them, write the interval instead


def _page() -> str:
    return FOLDER.with_suffix(".md").read_text()


def _words(path: Path) -> str:
    return " ".join(path.read_text().split())


def _arms(name: str) -> dict[str, dict]:
    return json.loads((FOLDER / name).read_text())


def _outside(found: dict[str, dict], baseline: str) -> tuple[int, list, list]:
    """Return how many differences to a baseline there are, and those whose intervals are above and below zero."""
    every = {
        (arm, step): difference
        for arm, row in found.items()
        if arm != "full" and not (baseline == "to_random" and arm.startswith("random"))
        for step, difference in row[baseline].items()
    }
    above = [key for key, difference in every.items() if difference["low"] > 0]
    return len(every), above, [key for key, difference in every.items() if difference["high"] < 0]
