"""Runs the study: worlds, tuning, choice, comparison. What is done already is not done again.

python run.py --output OUT --workers 2            everything
python run.py --output OUT --workers 2 --check    one short run of each arm on a seed that counts for nothing
"""

import argparse
import itertools
import json
import multiprocessing
import os
import statistics
import time
import traceback
from pathlib import Path

STAGES = ("policies", "worlds", "tuning", "final", "long", "after")


def _start() -> None:
    """Set a worker up: one thread, and no output but our own."""
    os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1", HF_DATASETS_DISABLE_PROGRESS_BARS="1")
    import datasets
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()


def _work(task: tuple) -> str:
    """Do one task; its result lies in a file before this returns."""
    import arms
    from world import make_policy, make_world, write_json

    stage, output, seed, quality, arm, index, steps = task
    output, begin = Path(output), time.perf_counter()
    if stage == "policies":
        make_policy(seed, output)
    elif stage == "worlds":
        make_world(seed, quality, output)
    else:
        world = make_world(seed, quality, output)
        scratch = output / "trainer" / str(os.getpid())
        if stage == "long":
            setting, margin, checkpoints = arms.LONG_ARMS[arm], None, arms.LONG_CHECKPOINTS
        else:
            setting, margin = arms.ARMS[arm].settings[index], arms.ARMS[arm].margin
            checkpoints = (steps,) if stage == "tuning" else arms.CHECKPOINTS
        split = "train" if stage == "tuning" else "test"
        result = arms.train(world, setting, margin, seed, split, steps, checkpoints, scratch)
        write_json(_path(task), {"seed": seed, "quality": quality, "arm": arm, "index": index, **result})
    return f"{stage} seed {seed} {quality} {arm} {index}: {time.perf_counter() - begin:.1f} s"


def _try(task: tuple) -> tuple[tuple, str, bool]:
    try:
        return task, _work(task), True
    except Exception:  # a failed run is named and left out, as the plan says; the others go on
        return task, traceback.format_exc(), False


def _path(task: tuple) -> Path:
    stage, output, seed, quality, arm, index, _ = task
    if stage == "policies":
        return Path(output) / "policies" / f"seed{seed}" / "done"
    if stage == "worlds":
        return Path(output) / "worlds" / f"seed{seed}-{quality}" / "world.json"
    return Path(output) / stage / f"{quality}-{arm}-{index}-seed{seed}.json"


def tasks(stage: str, output: str, chosen: dict) -> list[tuple]:
    """Return the tasks of a stage."""
    import arms

    every = (arms.TUNING_SEED, *arms.SEEDS)
    if stage == "policies":
        return [(stage, output, seed, "", "", 0, 0) for seed in every]
    if stage == "worlds":
        return [(stage, output, seed, q, "", 0, 0) for seed, q in itertools.product(every, arms.QUALITIES)]
    if stage == "tuning":
        keys = itertools.product(arms.QUALITIES, arms.ARMS)
        return [
            (stage, output, arms.TUNING_SEED, *key, i, arms.STEPS)
            for key in keys
            for i in range(len(arms.ARMS[key[1]].settings))
        ]
    if stage == "long":
        keys = itertools.product(arms.SEEDS, arms.LONG_QUALITIES, arms.LONG_ARMS)
        return [(stage, output, *key, 0, arms.LONG_STEPS) for key in keys]
    if stage == "after":
        keys = itertools.product(arms.SEEDS, arms.QUALITIES, arms.AFTER)
        return [(stage, output, seed, quality, *setting, arms.STEPS) for seed, quality, setting in keys]
    keys = itertools.product(arms.SEEDS, arms.QUALITIES, arms.ARMS)
    return [(stage, output, *key, chosen[key[2]]["index"], arms.STEPS) for key in keys]


def choose(output: Path) -> dict:
    """Choose each arm's setting: the highest true reward on the tuning seed, averaged over the qualities.

    A setting with a missing run or no finite reward counts as minus infinity; of equal ones the first is taken.
    """
    import arms

    chosen = {}
    for name, arm in arms.ARMS.items():
        means = []
        for i in range(len(arm.settings)):
            paths = [_path(("tuning", output, arms.TUNING_SEED, quality, name, i, 0)) for quality in arms.QUALITIES]
            figures = [json.loads(path.read_text())["curve"][-1]["true"] for path in paths if path.exists()]
            whole = len(figures) == len(paths) and all(abs(figure) < 1e9 for figure in figures)
            means.append(statistics.fmean(figures) if whole else float("-inf"))
        index = means.index(max(means))
        chosen[name] = {"index": index, "setting": arm.settings[index], "means": means}
    return chosen


def check(output: str) -> list[tuple]:
    """Return short runs of every arm on a seed that is not part of the study."""
    import arms

    seed = 1000
    runs = [("tuning", output, seed, "medium", name, 1, 20) for name in arms.ARMS]
    return [("policies", output, seed, "", "", 0, 0), ("worlds", output, seed, "medium", "", 0, 0), *runs]


def run(pool, todo: list[tuple]) -> int:
    """Do the tasks that are not done and return how many failed; failures are printed and the rest goes on."""
    todo = [task for task in todo if not _path(task).exists()]
    failed = 0
    for i, (task, words, good) in enumerate(pool.imap_unordered(_try, todo), 1):
        failed += not good
        print(
            f"{time.strftime('%H:%M:%S')} [{i}/{len(todo)}] {words if good else f'FAILED {task}: {words}'}", flush=True
        )
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", required=True, help="folder for the results of single runs")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--check", action="store_true", help="short runs that count for nothing")
    parser.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES)
    args = parser.parse_args()
    with multiprocessing.get_context("spawn").Pool(args.workers, _start) as pool:
        if args.check:
            first, second, *rest = check(args.output)
            raise SystemExit(run(pool, [first]) + run(pool, [second]) + run(pool, rest))
        for stage in args.stages:
            chosen = {}
            if stage == "final":
                from world import write_json

                chosen = choose(Path(args.output))
                write_json(Path(args.output) / "chosen.json", chosen)
            failed = run(pool, tasks(stage, args.output, chosen))
            print(f"{stage}: {failed} failed", flush=True)


if __name__ == "__main__":
    main()
