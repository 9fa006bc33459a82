"""Run in each of several processes, or alone: score SFT data (JSON file in, what each rank got out)."""

import json
import os
import sys
import time
from pathlib import Path

from datasets import Dataset

from hf_gradkit.scoring import DifficultyScoring
from hf_gradkit.scoring.difficulty_scorers import GradientScorer
from hf_gradkit.scoring.processes import world
from launch import REPORT, report_world


def slow_down(seconds: float) -> None:
    """Let each batch take this much longer, so that a test can kill the process in the middle."""
    score = GradientScorer.score

    def slow(self, items):
        time.sleep(seconds)
        return score(self, items)

    GradientScorer.score = slow


def main() -> None:
    case, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    rank = world().process_index
    if REPORT in os.environ:
        report_world()
    slow_down(case.get("seconds", 0.0))
    dataset = Dataset.from_json(case["data"], cache_dir=str(folder / f"cache-{os.getpid()}"))
    options = {"by": tuple(case["by"]), "batch_size": case["batch_size"], "cache_folder": folder / "scores"}
    scores = DifficultyScoring(dataset, case["models"], example_id_column="uid", **options).run()
    columns = {name: values.tolist() for name, values in scores.columns.items()}
    result = {"columns": columns, "ids": scores.ids, "scored": scores.scored, "key": scores.key}
    (folder / f"{case['name']}.rank{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
