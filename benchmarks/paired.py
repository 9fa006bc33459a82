"""Paired step times and peak memory of trainers: the machinery of step_time.py.

All trainers are alive at once and take turns, one optimizer step each, so that whatever else the machine does hits all
alike. Peak memory is of one process an arm: what training adds to the memory of the process before it, resident memory
on a CPU and allocated memory on a GPU.
"""

import argparse
import contextlib
import cProfile
import io
import json
import multiprocessing
import os
import pstats
import random
import resource
import statistics
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import disable_progress_bars
from transformers import TrainerCallback
from transformers.utils import logging

MakeTrainer = Callable[[str, argparse.Namespace, str, list], Any]  # arm, options, folder, callbacks


class Turns:
    """A baton that goes round, in a new order each round: only the arm that holds it runs."""

    def __init__(self, names: list[str]):
        self.names = list(names)
        self.left: list[str] = []
        self.random = random.Random(0)
        self.changed = threading.Condition()
        self.give()

    def wait(self, name: str) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.holder == name)

    def give(self) -> None:
        with self.changed:
            if not self.left:
                self.left = self.random.sample(self.names, len(self.names))
            self.holder = self.left.pop()
            self.changed.notify_all()


class Clock(TrainerCallback):
    """Times one optimizer step a turn, with everything between two step ends in it: data, forward, backward, logs."""

    def __init__(self, name: str, turns: Turns, device: str):
        self.name, self.turns, self.device = name, turns, device
        self.times: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.times.append(time.perf_counter() - self.start if state.global_step > 1 else 0.0)
        self.turns.give()
        self.turns.wait(self.name)
        self.start = time.perf_counter()


def time_steps(make: MakeTrainer, arms: list[str], options: argparse.Namespace, folder: str) -> dict[str, list[float]]:
    """Return the step times of each arm, the first two steps left out."""
    turns = Turns(arms)
    clocks = {arm: Clock(arm, turns, options.device) for arm in arms}
    trainers = {arm: make(arm, options, folder, [clocks[arm]]) for arm in arms}
    for trainer in trainers.values():
        trainer.callback_handler.callbacks = [
            callback for callback in trainer.callback_handler.callbacks if type(callback).__name__ != "PrinterCallback"
        ]

    def work(arm: str) -> None:
        turns.wait(arm)
        trainers[arm].train()
        turns.give()

    threads = [threading.Thread(target=work, args=(arm,)) for arm in arms]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {arm: clocks[arm].times[2:] for arm in arms}


def peak_memory(
    make: MakeTrainer, arm: str, options: argparse.Namespace, folder: str, result: "multiprocessing.Queue"
) -> None:
    """Put the MiB that training adds at its peak, in a process of its own."""
    quiet()
    trainer = make(arm, options, folder, [])
    trainer.args.max_steps = 3
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        trainer.train()
        result.put(torch.cuda.max_memory_allocated() / 2**20)
    else:
        before = current_rss()
        trainer.train()
        result.put(peak_rss() - before)


def profile(make: MakeTrainer, arm: str, options: argparse.Namespace, folder: str) -> None:
    """Print how long an arm's micro-batches take, and the functions of ours among them that take longest."""
    trainer = make(arm, options, folder, [])
    with contextlib.redirect_stdout(io.StringIO()):  # the logs
        profiler = cProfile.Profile()
        profiler.runcall(trainer.train)
    pstats.Stats(profiler).sort_stats("cumulative").print_stats("hf_gradkit|training_step|autograd.*grad", 14)


def current_rss() -> float:
    """Return this process's resident memory in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def peak_rss() -> float:
    """Return the most resident memory that this process has had, in MiB.

    Not `ru_maxrss`, which a new process inherits from the one that started it.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def interval(ratios: list[float], rounds: int = 2000) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the median."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(rounds))
    return medians[int(0.025 * rounds)], medians[int(0.975 * rounds)]


def quiet() -> None:
    """Leave only the figures on the screen."""
    disable_progress_bars()
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore")


def measure(make: MakeTrainer, arms: list[str], options: argparse.Namespace, folder: str) -> dict[str, dict]:
    """Time and weigh all arms against the first one, print the table, and return its figures."""
    times = time_steps(make, arms, options, folder)
    memory: dict[str, list[float]] = {arm: [] for arm in arms}
    context = multiprocessing.get_context("spawn")
    # Large blocks go back to the system as soon as they are free, so that resident memory is what is in use.
    os.environ.update(MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536", MALLOC_ARENA_MAX="2")
    for _ in range(options.memory_rounds):
        for arm in arms:
            queue = context.Queue()
            process = context.Process(target=peak_memory, args=(make, arm, options, folder, queue))
            process.start()
            memory[arm].append(queue.get())
            process.join()
    base = arms[0]
    print(f"TRL's step: {statistics.median(times[base]) * 1000:.0f} ms; {len(times[base])} rounds")
    print(f"{'':<14}{'time ratio':>11}{'95 % interval':>17}{'quartiles':>15}{'peak memory ratio':>20}")
    results: dict[str, dict] = {}
    for arm in arms:
        ratios = [ours / theirs for ours, theirs in zip(times[arm], times[base], strict=True)]
        low, high = interval(ratios)
        first, median, third = statistics.quantiles(ratios, n=4)
        of_memory = [a / b for a, b in zip(memory[arm], memory[base], strict=True)]
        shown = f"{statistics.median(of_memory):.3f} ({min(of_memory):.3f}-{max(of_memory):.3f})" if of_memory else "-"
        print(f"{arm:<14}{median:>11.3f}{f'{low:.3f}-{high:.3f}':>17}{f'{first:.3f}-{third:.3f}':>15}{shown:>20}")
        results[arm] = {"time": median, "interval": [low, high], "quartiles": [first, third], "memory": of_memory}
    if options.json:
        options.json.write_text(json.dumps({"options": vars(options), "arms": results}, indent=1, default=str) + "\n")
        print(f"Figures: {options.json}")
    return results
