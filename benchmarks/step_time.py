"""Step time and peak memory of weighted SFT against TRL's own trainer, in one run.

    python benchmarks/step_time.py                     # a few minutes on two CPU cores
    python benchmarks/step_time.py --hidden 2048 --layers 16 --length 1024 --device cuda --bf16

Step times are paired: all trainers are alive at once and take turns, one optimizer step each, so that whatever else
the machine does hits all alike. A second TRL trainer shows the noise. Printed are ratios to TRL's step of the same
round: the median, its 95 % bootstrap interval, and the quartiles of single rounds. Peak memory is of one process an
arm: what training adds to the memory of the process before it, resident memory on a CPU and allocated memory on a GPU.
"""

import argparse
import contextlib
import cProfile
import io
import json
import multiprocessing
import pstats
import random
import resource
import statistics
import tempfile
import threading
import time
import warnings
from pathlib import Path

import torch
import trl
from datasets import Dataset, disable_progress_bars
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback
from transformers.utils import logging

import hf_gradkit
from hf_gradkit.data.tiny import train_tokenizer

WORDS = "the a cat dog mat sat ran saw one big red house on and to under old".split()  # noqa: SIM905
ARMS = {
    "trl": None,
    "trl again": None,
    "off": {},
    "columns": {"group_column": "source"},
    "micro_batch": {"weighting": "linupper", "weighting_kwargs": {"scope": "micro_batch", "warmup_ratio": 0.0}},
    "running": {"weighting": "linupper", "weighting_kwargs": {"scope": "running", "warmup_ratio": 0.0}},
    "step": {"weighting": "linupper", "weighting_kwargs": {"scope": "step", "warmup_ratio": 0.0}},
}


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


def make_data(rows: int, length: int) -> tuple[Dataset, object]:
    """Return rows of a quarter of `length` to `length` words, and a tokenizer."""
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(length // 4, length - 1))) for _ in range(rows)]
    return Dataset.from_dict({"text": texts, "source": ["ab"[i % 2] for i in range(rows)]}), train_tokenizer(
        texts, 400
    )


def make_trainer(arm: str, options: argparse.Namespace, folder: str, callbacks: list) -> trl.SFTTrainer:
    """Return the trainer of an arm; all have the same model, data and order."""
    dataset, tokenizer = make_data(64, options.length)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        intermediate_size=3 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    ours = ARMS[arm]
    trainer_class, config_class = (
        (trl.SFTTrainer, trl.SFTConfig) if ours is None else (hf_gradkit.SFTTrainer, hf_gradkit.SFTConfig)
    )
    args = config_class(
        output_dir=f"{folder}/{arm}",
        max_steps=options.steps + 2,
        per_device_train_batch_size=options.batch,
        gradient_accumulation_steps=options.accumulation,
        logging_steps=1,
        optim="sgd",
        max_length=options.length,
        use_cpu=options.device == "cpu",
        bf16=options.bf16,
        activation_checkpointing=options.checkpointing,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **(ours or {}),
    )
    model = LlamaForCausalLM(config)
    return trainer_class(
        model=model, args=args, train_dataset=dataset, processing_class=tokenizer, callbacks=callbacks
    )


def time_steps(arms: list[str], options: argparse.Namespace, folder: str) -> dict[str, list[float]]:
    """Return the step times of each arm, the first two steps left out."""
    turns = Turns(arms)
    clocks = {arm: Clock(arm, turns, options.device) for arm in arms}
    trainers = {arm: make_trainer(arm, options, folder, [clocks[arm]]) for arm in arms}
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


def peak_memory(arm: str, options: argparse.Namespace, folder: str, result: "multiprocessing.Queue") -> None:
    """Put the MiB that training adds at its peak, in a process of its own."""
    quiet()
    trainer = make_trainer(arm, options, folder, [])
    trainer.args.max_steps = 3
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        trainer.train()
        result.put(torch.cuda.max_memory_allocated() / 2**20)
    else:
        before = current_rss()
        trainer.train()
        result.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before)


def profile(arm: str, options: argparse.Namespace, folder: str) -> None:
    """Print how long an arm's micro-batches take, and the functions of ours among them that take longest."""
    trainer = make_trainer(arm, options, folder, [])
    with contextlib.redirect_stdout(io.StringIO()):  # the logs
        profiler = cProfile.Profile()
        profiler.runcall(trainer.train)
    pstats.Stats(profiler).sort_stats("cumulative").print_stats("hf_gradkit|training_step|autograd.*grad", 14)


def current_rss() -> float:
    """Return this process's resident memory in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


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


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--steps", type=int, default=30, help="rounds that are timed")
    parser.add_argument("--memory_rounds", type=int, default=3, help="processes an arm for peak memory; 0 for none")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--accumulation", type=int, default=2)
    parser.add_argument("--length", type=int, default=128, help="longest row, in tokens")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch on the CPU")
    parser.add_argument("--profile", choices=list(ARMS), help="only profile this arm, on the CPU")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    quiet()
    if options.profile:
        with tempfile.TemporaryDirectory() as folder:
            profile(options.profile, options, folder)
        return
    arms = ["trl", *(arm for arm in options.arms if arm != "trl")]
    results: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        times = time_steps(arms, options, folder)
        memory: dict[str, list[float]] = {arm: [] for arm in arms}
        context = multiprocessing.get_context("spawn")
        for _ in range(options.memory_rounds):
            for arm in arms:
                queue = context.Queue()
                process = context.Process(target=peak_memory, args=(arm, options, folder, queue))
                process.start()
                memory[arm].append(queue.get())
                process.join()
    print(f"TRL's step: {statistics.median(times['trl']) * 1000:.0f} ms; {len(times['trl'])} rounds")
    print(f"{'':<14}{'time ratio':>11}{'95 % interval':>17}{'quartiles':>15}{'peak memory ratio':>20}")
    for arm in arms:
        ratios = [ours / theirs for ours, theirs in zip(times[arm], times["trl"], strict=True)]
        low, high = interval(ratios)
        first, median, third = statistics.quantiles(ratios, n=4)
        of_memory = [a / b for a, b in zip(memory[arm], memory["trl"], strict=True)]
        shown = f"{statistics.median(of_memory):.3f} ({min(of_memory):.3f}-{max(of_memory):.3f})" if of_memory else "-"
        print(f"{arm:<14}{median:>11.3f}{f'{low:.3f}-{high:.3f}':>17}{f'{first:.3f}-{third:.3f}':>15}{shown:>20}")
        results[arm] = {"time": median, "interval": [low, high], "quartiles": [first, third], "memory": of_memory}
    if options.json:
        options.json.write_text(json.dumps({"options": vars(options), "arms": results}, indent=1, default=str) + "\n")
        print(f"Figures: {options.json}")


if __name__ == "__main__":
    main()
