"""Runs the study: `python run.py --preference PREF --hh HH --output OUT`. What is there already is not repeated.

PREF and HH are the folders that the studies `preference` and `hh_harmless` wrote; a run's result is one JSON file.
"""

import argparse
import os
import time
import traceback
from dataclasses import replace
from pathlib import Path

# Before torch is imported.
os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1", TOKENIZERS_PARALLELISM="false")

import datasets
import torch
import transformers
from training import CHECKS, PLANS, arms, check, train
from worlds import CONDITIONS, hh, preference, shared, synthetic

SEEDS = (0, 1, 2)
SHARED_ARMS = ("dpo", "balancing_pair")


def tasks() -> list[tuple[str, str, str]]:
    """Return the runs of each seed: what kind, in which world, which arm or setting."""
    runs = [("main", world, arm) for world in ("synthetic", "hh") for arm in arms(world)]
    runs += [("check", world, setting) for world in ("synthetic", "hh") for setting in CHECKS]
    return runs + [("shared", condition, arm) for condition in CONDITIONS for arm in SHARED_ARMS]


def run(task: tuple[str, str, str], seed: int, args: argparse.Namespace, smoke: bool) -> dict:
    """Do one run and return its result."""
    kind, where, what = task
    scratch = args.output / "trainer"
    if kind == "shared":
        plan, world = PLANS["shared"], shared(seed, args.preference, where)
    else:
        plan, world = PLANS[where], synthetic(seed, args.preference) if where == "synthetic" else hh(seed, args.hh)
    if smoke:
        plan = replace(plan, steps=6, measured=1, pairs=(16, 16))
    if kind == "check":
        return check(world, plan, CHECKS[what], seed, scratch)
    return train(world, plan, arms("synthetic" if kind == "shared" else where)[what], seed, scratch)


def main() -> None:
    """Run what is not there yet, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preference", type=Path, required=True, help="output folder of the study preference")
    parser.add_argument("--hh", type=Path, required=True, help="output folder of the study hh_harmless")
    parser.add_argument("--output", type=Path, required=True, help="folder for the results of single runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--smoke", action="store_true", help="a few steps of each run, which count for nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    for seed in args.seeds:
        for task in tasks():
            path = args.output / ("smoke" if args.smoke else "runs") / f"{'-'.join(task)}-seed{seed}.json"
            if path.exists():
                continue
            begin = time.perf_counter()
            try:
                result = run(task, seed, args, args.smoke)
            except Exception:  # a failed run is named and left out, as the plan says; the others go on
                print(f"FAILED {path.stem}: {traceback.format_exc()}", flush=True)
                continue
            keys = dict(zip(("kind", "world", "arm"), task, strict=True))
            preference.write_json(path, {**keys, "seed": seed, **result})
            seconds = time.perf_counter() - begin
            print(f"{time.strftime('%H:%M:%S')} {path.stem}: {seconds:.0f} s, {result['seconds']} s CPU", flush=True)
    print(f"Results of single runs are in {args.output}. Next: python results.py --output {args.output}")


if __name__ == "__main__":
    main()
