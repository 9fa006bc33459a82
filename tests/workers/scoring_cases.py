"""Run in each of two processes, or alone: jobs that train nothing (JSON file in, what the main process got out).

A case with "kill" ends process 1 by SIGKILL once it has finished so many batches; one that finds the same folder goes
on where that was.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset

from helpers import text_dataset
from hf_gradkit._backends import prepare_cpu_backends
from hf_gradkit.audit import audit_extraction, audit_membership
from hf_gradkit.audit.sampling import Sampling
from hf_gradkit.scoring import add_difficulty, add_reward_margins
from hf_gradkit.scoring.processes import world
from hf_gradkit.scoring.work import ScoreStream
from hf_gradkit.selection import FiFA
from launch import REPORT, report_world
from pair_helpers import pairs

ROWS = 26  # 13 batches: in the last round one process has none
ATTACKS = ["loss", "flora", "min_k", "min_k_plus_plus", "error_zone", "window", "gradient_norm"]


def reward(folder: Path, model: str, options: dict[str, Any]) -> dict[str, Any]:
    """Reward margins of pairs."""
    scored = add_reward_margins(pairs(ROWS), folder / f"reward_{model}", **options)
    return {name: list(scored[name]) for name in ("reward_chosen", "reward_rejected", "reward_margin")}


def difficulty(folder: Path, model: str, options: dict[str, Any], by: list[str]) -> dict[str, Any]:
    """Difficulty of texts."""
    scored = add_difficulty(text_dataset(ROWS), str(folder / model), by, **options)
    return {name: list(scored[name]) for name in by}


def select(folder: Path, model: str, options: dict[str, Any]) -> dict[str, Any]:
    """FiFA with a model for the margins and one for the quality of prompts."""
    margin = {"by": "reward_model", "model": str(folder / f"reward_{model}")}
    quality = {"by": "perplexity", "model": str(folder / "full")}
    found = FiFA(margin=margin, quality=quality, fraction=0.4, k=3, **options).select(pairs(ROWS))
    return {"kept": [str(i) for i in found.kept], "score": list(found.scores["score"])}


def membership(folder: Path, model: str, options: dict[str, Any]) -> dict[str, Any]:
    """Scores of membership attacks, on tokens and gradients; a whole model has the base as a second one."""
    found = audit_membership(
        folder / model, *sides(), attacks=ATTACKS, bootstrap_rounds=10, **reference(folder, model), **options
    )
    return {name: scores.tolist() for name, scores in found.scores.items()}


def extraction(folder: Path, model: str, options: dict[str, Any]) -> dict[str, Any]:
    """Probabilities of suffixes, and what is written after prefixes."""
    every = Sampling(temperature=1.0, top_k=None, top_p=1.0)  # these models know too little for a suffix to be likely
    lengths = {"prefix_tokens": 4, "suffix_tokens": 12, "generations": 1, "sampling": every}
    found = audit_extraction(folder / model, *sides(), **lengths, **reference(folder, model), **options)
    return {"log_p_z": np.log(found.p_z).tolist(), "guesses": found.guesses}


def sides() -> list[Any]:
    """Return members and non-members."""
    rows = [{"text": f"{row['text']} and so on and on"} for row in text_dataset(ROWS)]  # none is too short to complete
    return [Dataset.from_list(rows[: ROWS // 2]), Dataset.from_list(rows[ROWS // 2 :])]


def reference(folder: Path, model: str) -> dict[str, Any]:
    return {"reference_model": folder / "base"} if model == "full" else {}


JOBS = {"reward": reward, "difficulty": difficulty, "select": select, "membership": membership}
JOBS["extraction"] = extraction


@contextmanager
def counted(kill_after: int | None) -> Iterator[list[int]]:
    """Give a list that gets the number of rows of each batch this process finishes; end process 1 if asked to."""
    done, append = [], ScoreStream.append

    def counting(self: ScoreStream, rows: np.ndarray, columns: dict[str, np.ndarray]) -> None:
        append(self, rows, columns)
        done.append(len(rows))
        if kill_after is not None and world().process_index == 1 and len(done) == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    ScoreStream.append = counting
    try:
        yield done
    finally:
        ScoreStream.append = append


def run_cases(cases: list[dict[str, Any]], folder: Path) -> None:
    """Do each job in turn, and write what came out and how many rows were scored for it."""
    for case in cases:
        options = {"batch_size": 2, "cache_folder": folder / f"{case['name']}-cache"}
        with counted(case.get("kill")) as done:
            found = JOBS[case["job"]](folder, case["model"], options, **case.get("options", {}))
        scored = sum(gather_object([sum(done)]))
        if world().is_main_process:
            (folder / f"{case['name']}.json").write_text(json.dumps({"figures": found, "scored": scored}))


def main() -> None:
    prepare_cpu_backends()
    cases, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    run_cases(cases, folder)
    if REPORT in os.environ:
        Accelerator()  # knows which backend was launched; the jobs need none
        report_world()


if __name__ == "__main__":
    main()
