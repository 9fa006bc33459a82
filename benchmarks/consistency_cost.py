"""What WorkerConsistencyCallback costs: SFT steps of TRL's trainer on two processes, with and without it.

    python benchmarks/consistency_cost.py                        # DDP, two CPU processes
    python benchmarks/consistency_cost.py --backend fsdp2        # projections, since gradients are sharded
    python benchmarks/consistency_cost.py --config_file accelerate_configs/multi_gpu.yaml --device cuda

Arms train in turns, a block of steps each, in an order that is drawn anew each round; the first two steps of a block
are left out. Ratios are of a block's median step to that of the same round without the monitor: the median over the
rounds, and its 95 % bootstrap interval.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
ARMS = ("trl", "trl again", "every step", "every 10")
INSIDE = "GRADKIT_BENCHMARK_OPTIONS"  # set in the processes that are started


def work(options: argparse.Namespace) -> None:
    """Run in each process: time the blocks, and print the table."""
    import torch
    import trl
    from paired import interval, quiet
    from step_time import make_data, make_model
    from transformers import TrainerCallback

    from hf_gradkit import WorkerConsistencyCallback
    from hf_gradkit._backends import prepare_cpu_backends

    class Clock(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            self.times, self.last = [], time.perf_counter()

        def on_step_end(self, args, state, control, **kwargs):
            now = time.perf_counter()
            self.times.append(now - self.last)
            self.last = now

    quiet()
    torch.set_num_threads(1)
    prepare_cpu_backends()
    options.trainer = "sft"
    dataset, tokenizer = make_data(options)
    ratios: dict[str, list[float]] = {arm: [] for arm in ARMS}
    base_times = []
    for number in range(options.rounds):
        medians = {}
        for arm in random.Random(number).sample(ARMS, len(ARMS)):
            args = trl.SFTConfig(
                output_dir=f"{options.output}/{arm}",
                max_steps=options.steps,
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
            if arm.startswith("every"):
                steps = 1 if arm == "every step" else 10
                trainer.add_callback(WorkerConsistencyCallback(monitor_steps=steps, trainer=trainer))
            clock = Clock()
            trainer.add_callback(clock)
            trainer.train()
            # Every tenth step is in the block as often as it should be: its mean counts there, and else the median.
            average = statistics.mean if arm == "every 10" else statistics.median
            medians[arm] = average(clock.times[2:])
            if arm == "trl":
                medians["mean"] = statistics.mean(clock.times[2:])
            kind = type(trainer.model_wrapped).__name__
            trainer.model_wrapped = trainer.model
            trainer.accelerator.free_memory()
        base_times.append(medians["trl"])
        for arm in ARMS:
            ratios[arm].append(medians[arm] / medians["mean" if arm == "every 10" else "trl"])
    if int(os.environ["RANK"]) == 0:
        print(f"{kind}, {os.environ['WORLD_SIZE']} processes; a step: {statistics.median(base_times) * 1000:.0f} ms")
        print(f"{'':<14}{'time ratio':>11}{'95 % interval':>17}")
        results = {}
        for arm in ARMS:
            low, high = interval(ratios[arm])
            print(f"{arm:<14}{statistics.median(ratios[arm]):>11.3f}{f'{low:.3f}-{high:.3f}':>17}")
            results[arm] = {"time": statistics.median(ratios[arm]), "interval": [low, high]}
        if options.json:
            Path(options.json).write_text(json.dumps({"options": vars(options), "arms": results}, indent=1) + "\n")
            print(f"Figures: {options.json}")


def main() -> None:
    """Start the processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=["multi_gpu", "fsdp2", "zero2", "zero3"], default="multi_gpu")
    parser.add_argument(
        "--config_file", help="another launch configuration than accelerate_configs/cpu/<backend>.yaml"
    )
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=22, help="of a block")
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
