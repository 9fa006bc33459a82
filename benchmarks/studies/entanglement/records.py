"""What the runs left: their files, and the monitor's lines under the names of this study."""

import json
import statistics
from pathlib import Path

from run import SEEDS, SHARED_ARMS
from training import CHECKS, arms
from worlds import CONDITIONS

MAIN = ("synthetic", "hh")
PREFIX = "entanglement/"
DURING = (
    "cosine", "norm_ratio", "own_rises", "own_ideal", "own_both_fall", "own_both_rise", "step_rises", "step_falls",
    "observed_rises", "observed_falls", "agreement",
)  # fmt: skip
Runs = dict[int, dict]  # by seed


def load(output: Path) -> dict[tuple[str, str, str], Runs]:
    """Return the runs by kind, world and arm; one that is missing is named."""
    found = {("main", world, arm): {} for world in MAIN for arm in arms(world)}
    found |= {("check", world, setting): {} for world in MAIN for setting in CHECKS}
    found |= {("shared", condition, arm): {} for condition in CONDITIONS for arm in SHARED_ARMS}
    for path in sorted((output / "runs").glob("*.json")):
        run = json.loads(path.read_text())
        found[run["kind"], run["world"], run["arm"]][run["seed"]] = run
    for key, runs in found.items():
        if missing := set(SEEDS) - set(runs):
            print(f"missing: {key} seeds {sorted(missing)}")
    return found


def own_step(pairs: list[list[float]]) -> dict[str, float]:
    """Return the shares of what the pairs' own steps would do, from cosine and norm ratio, with DPO's signs.

    >>> own_step([[-0.2, 5.0], [0.9, 2.0], [0.9, 0.5], [0.5, 1.0]])["own_both_fall"]
    0.25
    """
    fall = [cosine > 0 and ratio >= 1 / cosine for cosine, ratio in pairs]
    rise = [cosine > 0 and ratio <= cosine for cosine, ratio in pairs]
    shares = {"own_both_fall": statistics.fmean(fall), "own_both_rise": statistics.fmean(rise)}
    return {**shares, "own_ideal": 1 - sum(shares.values()), "own_rises": 1 - shares["own_both_fall"]}


def watched(line: dict) -> dict[str, float]:
    """Return what the monitor said of one step, under the names of this study."""
    names = {
        "cosine": "cosine", "norm_ratio": "norm_ratio", "step_rises": "chosen_rises", "step_falls": "rejected_falls",
        "observed_rises": "observed_chosen_rises", "observed_falls": "observed_rejected_falls",
        "agreement": "agreement",
    }  # fmt: skip
    return {name: line[PREFIX + of] for name, of in names.items()} | own_step(line["pairs"])


def during(run: dict) -> dict[str, float]:
    """Return the means over the watched steps; not the first, whose learning rate is 0."""
    steps = [watched(line) for line in run["watched"] if line["step"] > 1]
    return {name: statistics.fmean(step[name] for step in steps) for name in DURING}
