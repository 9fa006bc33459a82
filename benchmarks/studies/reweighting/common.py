"""What the three experiments share: paired statistics, resumable results, and the settings of every run."""

import argparse
import gzip
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Two-sided 95 % points of Student's t by degrees of freedom; beyond the table the normal point is close enough.
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
SEEDS = [0, 1, 2, 3, 4]
# Everything that is the same in every run of every arm.
PLAIN = {
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "dataloader_num_workers": 0,
    "dataloader_pin_memory": False,
}


def mean_and_interval(values: list[float]) -> dict[str, float]:
    """Return the mean of independent values and its 95 % t-interval.

    >>> show(mean_and_interval([1.0, 2.0, 3.0]))
    '+2.0000 [-0.4843, +4.4843]'
    """
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return {"mean": mean, "low": math.nan, "high": math.nan, "n": n}
    half = T_95.get(n - 1, 1.96) * statistics.stdev(values) / math.sqrt(n)
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def paired(arm: dict[int, float], baseline: dict[int, float]) -> dict[str, float]:
    """Return the mean difference arm - baseline over the seeds that both have, with its interval."""
    return mean_and_interval([arm[seed] - baseline[seed] for seed in sorted(arm) if seed in baseline])


def verdict(difference: dict[str, float]) -> str:
    """Apply the study's rule to a paired difference of a figure that should be small."""
    if difference["high"] < 0:
        return "helps"
    return "hurts" if difference["low"] > 0 else "no effect shown"


def show(interval: dict[str, float], digits: int = 4) -> str:
    """Format a mean with its interval."""
    return f"{interval['mean']:+.{digits}f} [{interval['low']:+.{digits}f}, {interval['high']:+.{digits}f}]"


def first_step_at(curve: list[list[float]], target: float) -> tuple[float, bool]:
    """Return the step at which a curve of (step, loss) first is at the target, between two points by a straight line.

    The second value is False where the target was never reached; the step is then that of the last point.
    """
    for (step_a, loss_a), (step_b, loss_b) in zip([curve[0], *curve], curve, strict=False):
        if loss_b <= target:
            return (
                step_b if loss_a <= target else step_a + (step_b - step_a) * (loss_a - target) / (loss_a - loss_b)
            ), True
    return curve[-1][0], False


def read_text(path: Path) -> str:
    """Return the text of a gzip file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return file.read()


def arguments(description: str, **defaults: Any) -> argparse.Namespace:
    """Read the options that the experiments share, and one more for each default given."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--output", type=Path, required=True, help="folder for the results of single runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--summary", type=Path, help="folder for the summary and the figure; runs nothing")
    for name, default in defaults.items():
        kind = Path if default is None else type(default)
        parser.add_argument(f"--{name}", type=kind, default=default, required=default is None)
    return parser.parse_args()


def write_json(path: Path, value: Any) -> None:
    """Write JSON under a temporary name first, so that an interrupted run leaves no half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, allow_nan=True))
    os.replace(temporary, path)


def run_all(output: Path, seeds: list[int], arms: dict[str, Any], run: Callable[[int, str], dict]) -> None:
    """Run every (seed, arm) whose result is not there yet."""
    for seed in seeds:
        for arm in arms:
            path = output / f"seed{seed}-{arm}.json"
            if path.exists():
                print(f"{path.name}: there already", flush=True)
                continue
            start = time.perf_counter()
            result = run(seed, arm)
            result["seconds"] = round(time.perf_counter() - start, 1)
            write_json(path, result)
            print(f"{path.name}: {result['seconds']} s", flush=True)


def load_all(output: Path, seeds: list[int], arms: dict[str, Any]) -> dict[str, dict[int, dict]]:
    """Return the results as {arm: {seed: result}}; every one of them must be there."""
    return {arm: {seed: json.loads((output / f"seed{seed}-{arm}.json").read_text()) for seed in seeds} for arm in arms}
