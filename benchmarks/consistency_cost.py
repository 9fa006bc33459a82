"""What WorkerConsistencyCallback costs: SFT steps of TRL's trainer on two processes, with and without it.

    python benchmarks/consistency_cost.py                        # DDP, two CPU processes
    python benchmarks/consistency_cost.py --backend fsdp2        # hooks on the parameters, for `.grad` is sharded
    python benchmarks/consistency_cost.py --within --backend zero2      # watched and other steps of one trainer
    python benchmarks/consistency_cost.py --backend fsdp2 --profile "every step" --rounds 20      # where it goes
    python benchmarks/consistency_cost.py --config_file accelerate_configs/multi_gpu.yaml --device cuda

The trainers of all arms are alive in both processes and take turns, one optimizer step each, in an order that is drawn
anew each round; the first two rounds are left out. Steps that are watched are not all alike (in every fourth, single
examples are looked at), so rounds are taken together: 4 of them, and 10 for the arm that is watched every 10 steps. A
ratio is that of the sums of such a group to TRL's of the same rounds: the median over the groups, and its 95 %
bootstrap interval.

Identical trainers differ by some percent in a launch. With --within there is one trainer, of whose steps half are
watched: four of every eight, which ones is drawn. A ratio is that of their times to the others' of the same eight.
What the callback costs in steps that are not watched is not in it.
"""

import argparse
import contextlib
import io
import json
import os
import random
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
ARMS = ("trl", "trl again", "every step", "every 10")
WATCHED = {"every step": 1, "every 10": 10}
WITHIN = "half of the steps"
INSIDE = "GRADKIT_BENCHMARK_OPTIONS"  # set in the processes that are started


def work(options: argparse.Namespace) -> None:
    """Run in each process: time the steps, and print the table."""
    import torch
    import trl
    from paired import interval, profile, quiet, time_steps
    from step_time import make_data, make_model

    from hf_gradkit import WorkerConsistencyCallback
    from hf_gradkit._backends import prepare_cpu_backends

    quiet()
    torch.set_num_threads(1)
    prepare_cpu_backends()
    options.trainer = "sft"
    dataset, tokenizer = make_data(options)

    def make(arm: str, options: argparse.Namespace, folder: str, callbacks: list) -> Any:
        args = trl.SFTConfig(
            output_dir=f"{folder}/{arm}",
            max_steps=2 + options.rounds,
            per_device_train_batch_size=options.batch,
            logging_steps=1,
            optim="sgd",
            max_length=options.length,
            use_cpu=options.device == "cpu",
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        model = make_model(options, tokenizer)
        trainer = trl.SFTTrainer(model=model, args=args, train_dataset=dataset, processing_class=tokenizer)
        if arm == WITHIN:
            trainer.switch = Switch(WorkerConsistencyCallback(trainer=trainer))
            trainer.add_callback(trainer.switch)
        elif arm in WATCHED:
            trainer.add_callback(WorkerConsistencyCallback(monitor_steps=WATCHED[arm], trainer=trainer))
        for callback in callbacks:  # the clock, after ours
            trainer.add_callback(callback)
        trainers.append(trainer)
        return trainer

    trainers: list[Any] = []
    if options.profile:  # by all processes, and told by the first
        with contextlib.nullcontext() if os.environ["RANK"] == "0" else contextlib.redirect_stdout(io.StringIO()):
            profile(make, options.profile, options, options.output)
        trainers[0].model_wrapped = trainers[0].model
        trainers[0].accelerator.free_memory()
        trainers[0].accelerator.end_training()
        return
    if options.within:
        within(make, trainers, options)
        return
    times = time_steps(make, list(ARMS), options, options.output)
    kind = type(trainers[0].model_wrapped).__name__
    for trainer in trainers:  # DDP goes before the process group
        trainer.model_wrapped = trainer.model
    trainers[0].accelerator.free_memory()
    if int(os.environ["RANK"]) == 0:
        base = statistics.median(times["trl"]) * 1000
        print(f"{kind}, {os.environ['WORLD_SIZE']} processes; a step: {base:.0f} ms; {options.rounds} rounds")
        print(f"{'':<14}{'time ratio':>11}{'95 % interval':>17}")
        results = {}
        for arm in ARMS:
            ratios = grouped(times[arm], times["trl"], 10 if WATCHED.get(arm) == 10 else 4)
            low, high = interval(ratios)
            print(f"{arm:<14}{statistics.median(ratios):>11.3f}{f'{low:.3f}-{high:.3f}':>17}")
            results[arm] = {"time": statistics.median(ratios), "interval": [low, high], "groups": len(ratios)}
        if options.json:
            Path(options.json).write_text(json.dumps({"options": vars(options), "arms": results}, indent=1) + "\n")
            print(f"Figures: {options.json}")
    trainers[0].accelerator.end_training()


def within(make: Any, trainers: list[Any], options: argparse.Namespace) -> None:
    """Time watched and other steps of one trainer, and print how they compare."""
    from paired import interval, time_steps

    times = time_steps(make, [WITHIN], options, options.output)[WITHIN]
    trainer = trainers[0]
    watched = trainer.switch.watched[2:]  # as `time_steps` leaves the first two out
    kind, trainer.model_wrapped = type(trainer.model_wrapped).__name__, trainer.model
    trainer.accelerator.free_memory()
    if int(os.environ["RANK"]) == 0:
        ratios = []
        for start in range(0, len(times) - 7, 8):
            parts: dict[bool, float] = {True: 0.0, False: 0.0}
            for step in range(start, start + 8):
                parts[watched[step]] += times[step]
            ratios.append(parts[True] / parts[False])
        low, high = interval(ratios)
        found = {"wrapper": kind, "step_ms": statistics.median(times) * 1000, "groups": len(ratios)}
        found |= {"time": statistics.median(ratios), "interval": [low, high]}
        print(f"{kind}: a watched step takes {found['time']:.3f} [{low:.3f}, {high:.3f}] of another")
        if options.json:
            options.json, json_file = None, options.json
            Path(json_file).write_text(json.dumps({"options": vars(options), **found}, indent=1) + "\n")
    trainer.accelerator.end_training()


class Switch:
    """Stands in for a callback of which it passes on the steps that are drawn, the same on all processes."""

    def __init__(self, callback: Any):
        self.callback, self.draw = callback, random.Random(0)
        self.watched: list[bool] = []
        self.on = False

    def __getattr__(self, event: str) -> Any:
        told = getattr(self.callback, event)
        if not event.startswith("on_"):
            return told

        def tell(args: Any, state: Any, control: Any, **keywords: Any) -> Any:
            if event == "on_step_begin":
                self.begin_step()
            step = "step" in event
            return told(args, state, control, **keywords) if self.on or not step else None

        return tell

    def begin_step(self) -> None:
        if len(self.watched) < 2:
            self.on = True
        else:
            if (len(self.watched) - 2) % 8 == 0:
                self.next = self.draw.sample([True, False] * 4, 8)
            self.on = self.next.pop()
        self.watched.append(self.on)


def grouped(times: list[float], base: list[float], size: int) -> list[float]:
    """Return the ratios of the sums of so many rounds each."""
    starts = range(0, len(times) - size + 1, size)
    return [sum(times[start : start + size]) / sum(base[start : start + size]) for start in starts]


def main() -> None:
    """Start the processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=["multi_gpu", "fsdp2", "zero2", "zero3"], default="multi_gpu")
    parser.add_argument(
        "--config_file", help="another launch configuration than accelerate_configs/cpu/<backend>.yaml"
    )
    parser.add_argument("--rounds", type=int, default=80)
    parser.add_argument("--within", action="store_true", help="compare watched and other steps of one trainer")
    parser.add_argument("--profile", choices=list(ARMS), help="instead: which functions of ours an arm's steps spend")
    parser.add_argument("--batch", type=int, default=8, help="rows of a process")
    parser.add_argument("--length", type=int, default=256, help="longest row, in tokens")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--output", default="runs/consistency_cost")
    parser.add_argument("--json", help="also write the figures here")
    if INSIDE in os.environ:
        work(argparse.Namespace(**json.loads(os.environ[INSIDE])))
        return
    options = parser.parse_args()
    config = options.config_file or str(ROOT / "accelerate_configs" / "cpu" / f"{options.backend}.yaml")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config, __file__]
    environment = {**os.environ, INSIDE: json.dumps(vars(options)), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    sys.exit(subprocess.run(command, env=environment).returncode)


if __name__ == "__main__":
    main()
