"""Run in each of several processes, or alone: select pairs with a slow margin (JSON in, what each rank got out)."""

import json
import os
import sys
import time
from pathlib import Path

from datasets import Dataset

from hf_gradkit.scoring.processes import world
from hf_gradkit.selection import FiFA, components
from launch import REPORT, report_world


class SlowMargin:
    """A margin that takes its time, and notes which rows it was asked for.

    Args:
        log: file for the rows, one a line.
        seconds: what a call takes.
    """

    def __init__(self, log: Path, seconds: float):
        self.log, self.seconds = log, seconds

    def __reduce__(self):  # two processes, or runs, with other logs have the same margin
        return SlowMargin, ()

    def __call__(self, rows: list[dict]) -> list[float]:
        time.sleep(self.seconds)
        with self.log.open("a") as file:
            file.write("".join(f"{row['uid']}\n" for row in rows))
        return [float(len(row["chosen"]) - len(row["rejected"])) for row in rows]


def main() -> None:
    case, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    components.ROWS_AT_ONCE = 4  # so that there is something to divide, and to lose
    rank = world().process_index
    if REPORT in os.environ:
        report_world()
    dataset = Dataset.from_json(case["data"], cache_dir=str(folder / f"cache-{os.getpid()}"))
    margin = SlowMargin(folder / f"{case['name']}.log{rank}", case["seconds"])
    result = FiFA(margin=margin, **case["options"], cache_folder=folder / case["folder"]).select(dataset)
    scores = result.scores.to_dict()
    seconds = result.report.pop("seconds")
    written = {"kept": result.kept.tolist(), "scores": scores, "report": result.report, "parts": sorted(seconds)}
    (folder / f"{case['name']}.rank{rank}.json").write_text(json.dumps(written))


if __name__ == "__main__":
    main()
