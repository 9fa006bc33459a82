"""Run in each of several processes, or alone: score numbers or pairs (JSON file in, what each rank got out)."""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from datasets import Dataset

from hf_gradkit.scoring import PairScoring, add_reward_margins, check_recorded_reward_model, score_rows
from hf_gradkit.scoring.processes import world
from launch import REPORT, report_world


class Doubler:
    """A scorer whose truth is plain: the double of each number, and a vector. Notes what it was asked for.

    Args:
        log: file for the numbers, one a line.
        seconds: what a batch takes.
        fails_after: batches after which it raises.
    """

    columns = ("double", "vector")

    def __init__(self, log: Path, seconds: float = 0.0, fails_after: int | None = None):
        self.log, self.seconds, self.left = log, seconds, fails_after
        self.batches: list[list[int]] = []

    def length(self, item: int) -> int:
        return item % 7

    def score(self, items: list[int]) -> dict[str, np.ndarray]:
        if self.left == 0:
            raise RuntimeError("out of memory")
        self.left = None if self.left is None else self.left - 1
        time.sleep(self.seconds)
        self.batches.append(list(items))
        with self.log.open("a") as file:
            file.write("".join(f"{item}\n" for item in items))
        values = np.array(items)
        return {"double": 2.0 * values, "vector": np.stack([values, -values], 1).astype(np.float32)}


def score_numbers(case: dict, folder: Path, rank: int) -> dict:
    scorer = Doubler(folder / f"{case['name']}.log{rank}", case.get("seconds", 0.0))
    scores = score_rows(list(range(case["rows"])), scorer, folder / "work", "numbers", case["batch_size"])
    return {"double": scores.columns["double"].tolist(), "scored": scores.scored}


def score_pairs(case: dict, folder: Path) -> dict:
    dataset = Dataset.from_json(case["data"], cache_dir=str(folder / f"cache-{os.getpid()}"))
    options = {"batch_size": 2, "cache_folder": folder / "scores"}
    first = PairScoring(dataset, case["model"], **options).run().scored
    scored = add_reward_margins(dataset, case["model"], **options)
    again = PairScoring(dataset, case["model"], **options).run().scored
    result = {"first": first, "again": again, "columns": scored.to_dict()}
    check_recorded_reward_model(scored, case["model"])
    try:
        check_recorded_reward_model(scored, case["other"])
    except ValueError as error:
        result["error"] = str(error)
    return result


def main() -> None:
    case, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    rank = world().process_index
    if REPORT in os.environ:
        report_world()
    result = score_numbers(case, folder, rank) if case["kind"] == "numbers" else score_pairs(case, folder)
    (folder / f"{case['name']}.rank{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
