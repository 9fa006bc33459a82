"""Start-up: `gradkit --help`, and imports of hf_gradkit beside TRL's.

    python benchmarks/startup.py --rounds 20 --json docs/results/startup/cpu.json

Every arm is a process of its own. Arms take turns, in a new order each round, after one that warms the file cache
and is thrown away. Printed are seconds (median, with the 10 % and 90 % quantiles) and, where an arm has a counterpart,
the ratio to it in the same round: the median and its 95 % bootstrap interval. "the noise" is the counterpart against
itself.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from tqdm import tqdm

LIMIT_SECONDS, LIMIT_RATIO = 0.5, 1.10  # what is asked of `gradkit --help`, and of an import beside TRL's
PYTHON = [sys.executable, "-c"]
ARMS = {
    "python, nothing": ([*PYTHON, "pass"], None),
    "gradkit --help": ([str(Path(sys.executable).parent / "gradkit"), "--help"], None),
    "import trl": ([*PYTHON, "import trl"], None),
    "import trl again (the noise)": ([*PYTHON, "import trl"], "import trl"),
    "import hf_gradkit": ([*PYTHON, "import hf_gradkit"], "import trl"),
    "from trl import SFTTrainer": ([*PYTHON, "from trl import SFTTrainer, SFTConfig"], None),
    "from hf_gradkit import SFTTrainer": (
        [*PYTHON, "from hf_gradkit import SFTTrainer, SFTConfig"],
        "from trl import SFTTrainer",
    ),
    "from trl import DPOTrainer": ([*PYTHON, "from trl import DPOTrainer, DPOConfig"], None),
    "from hf_gradkit import DPOTrainer": (
        [*PYTHON, "from hf_gradkit import DPOTrainer, DPOConfig"],
        "from trl import DPOTrainer",
    ),
}


def interval(ratios: list[float], rounds: int = 2000) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the median."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(rounds))
    return medians[int(0.025 * rounds)], medians[int(0.975 * rounds)]


def seconds(command: list[str]) -> float:
    """Run a command to its end and return how long it took."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    return time.perf_counter() - start


def measure(rounds: int, limit: float) -> dict[str, list[float]]:
    """Return the seconds of each arm, a value a round; after `limit` seconds no further round begins."""
    rng, times, start = random.Random(0), {name: [] for name in ARMS}, time.perf_counter()
    for number in tqdm(range(rounds + 1), unit="round"):
        if number > 2 and time.perf_counter() - start > limit:  # quantiles need two rounds
            break
        for name in rng.sample(list(ARMS), len(ARMS)):
            took = seconds(ARMS[name][0])
            if number:  # the first round warms the file cache
                times[name].append(took)
    return times


def figures(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Return medians, quantiles and ratios of each arm."""
    result = {}
    for name, values in times.items():
        deciles = statistics.quantiles(values, n=10)
        result[name] = {"seconds": statistics.median(values), "low": deciles[0], "high": deciles[-1]}
        counterpart = ARMS[name][1]
        if counterpart is not None:
            ratios = [a / b for a, b in zip(values, times[counterpart], strict=True)]
            low, high = interval(ratios)
            result[name] |= {"ratio": statistics.median(ratios), "ratio_low": low, "ratio_high": high}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="times that each arm is run")
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds after which no round begins")
    parser.add_argument("--json", type=Path, help="write times and figures to this file")
    options = parser.parse_args()
    times = measure(options.rounds, options.limit)
    result = figures(times)
    for name, row in result.items():
        ratio = f"  {row['ratio']:.3f} [{row['ratio_low']:.3f}, {row['ratio_high']:.3f}]" if "ratio" in row else ""
        print(f"{name:<36}{row['seconds']:7.3f} s ({row['low']:.3f} to {row['high']:.3f}){ratio}")
    if options.json is not None:
        libraries = ("torch", "transformers", "trl", "accelerate", "datasets")
        record = {
            "python": platform.python_version(),
            "processors": os.cpu_count(),
            "versions": {name: version(name) for name in libraries},
            "limits": {"gradkit --help, seconds": LIMIT_SECONDS, "import hf_gradkit, ratio": LIMIT_RATIO},
            "figures": result,
            "times": times,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        temporary = options.json.with_suffix(".tmp")
        temporary.write_text(json.dumps(record, indent=1) + "\n")
        os.replace(temporary, options.json)
        print(f"Written to {options.json}.")


if __name__ == "__main__":
    main()
