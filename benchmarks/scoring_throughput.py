"""Throughput of the scoring engine against a bare batched forward loop, in one run.

    python benchmarks/scoring_throughput.py                      # a few minutes on one CPU core
    python benchmarks/scoring_throughput.py --hidden 2048 --layers 16 --length 1024 --rows 2048 --device cuda --bf16

Both score the same sequences with the same reward model in the same process, in the same batches, sorted by length.
The bare loop pads, calls the model and keeps the rewards in an array. The engine also deals the batches out, writes
each to disk, checks the rewards, merges and reads the result. They take turns, in a new order each turn. Printed is
the ratio of the engine's time to the bare loop's of the same turn: the median, its 95 % bootstrap interval and the
quartiles. A second bare loop shows the noise. The ratio of CPU times leaves out waiting, for a disk or for other
processes' turns. Hashing and tokenising, which are done once, are in neither.
"""

import argparse
import json
import random
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from hf_gradkit.scoring import RewardScorer, score_rows


def make_model(options: argparse.Namespace) -> LlamaForSequenceClassification:
    """Return a reward model with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        intermediate_size=3 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=options.length,
        pad_token_id=0,
        num_labels=1,
    )
    model = LlamaForSequenceClassification(config).to(options.device).eval()
    return model.bfloat16() if options.bf16 else model


def make_sequences(options: argparse.Namespace) -> list[np.ndarray]:
    """Return sequences of an eighth of `length` to `length` tokens."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(options.length // 8, options.length, options.rows, endpoint=True)
    return [rng.integers(1, options.vocabulary, n) for n in lengths]


@torch.inference_mode()
def bare(model: LlamaForSequenceClassification, sequences: list[np.ndarray], batch_size: int) -> np.ndarray:
    """Score with as little as there can be around the forward."""
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
    rewards = np.empty(len(sequences), dtype=np.float32)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        rows = [torch.from_numpy(sequences[i]) for i in batch]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0)
        mask = (ids != 0).long()
        logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False).logits
        rewards[batch] = logits[:, 0].float().cpu().numpy()
    return rewards


def engine(model: LlamaForSequenceClassification, sequences: list[np.ndarray], batch_size: int) -> np.ndarray:
    """Score with the engine, into a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        scorer = RewardScorer(model, pad_token_id=0)
        return score_rows(sequences, scorer, folder, "benchmark", batch_size).columns["reward"]


def measure(score, *arguments) -> tuple[float, float, np.ndarray]:
    """Return a function's wall time and this process's CPU time in seconds, and what it returns."""
    start, start_cpu = time.perf_counter(), time.process_time()
    rewards = score(*arguments)
    return time.perf_counter() - start, time.process_time() - start_cpu, rewards


def ratios_to_bare(times: dict[str, list[float]], arm: str) -> dict[str, object]:
    """Return the ratios of an arm's times to the bare loop's of the same turn, and what sums them up."""
    ratios = [ours / theirs for ours, theirs in zip(times[arm], times["bare"], strict=True)]
    first, median, third = statistics.quantiles(ratios, n=4)
    return {"median": median, "interval": interval(ratios), "quartiles": [first, third], "ratios": ratios}


def interval(ratios: list[float], rounds: int = 2000) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the median."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(rounds))
    return medians[int(0.025 * rounds)], medians[int(0.975 * rounds)]


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=60, help="turns that are timed")
    parser.add_argument("--rows", type=int, default=48, help="sequences a turn")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=128, help="longest sequence, in tokens")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch on the CPU")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, sequences = make_model(options), make_sequences(options)
    arms = {"bare": bare, "bare again": bare, "engine": engine}
    shuffled = random.Random(0)
    wall: dict[str, list[float]] = {arm: [] for arm in arms}
    cpu: dict[str, list[float]] = {arm: [] for arm in arms}
    for number in range(options.turns + 1):
        rewards = {}
        for arm in shuffled.sample(list(arms), len(arms)):
            took, took_cpu, rewards[arm] = measure(arms[arm], model, sequences, options.batch)
            if number:  # the first turn warms up
                wall[arm].append(took)
                cpu[arm].append(took_cpu)
        assert np.allclose(rewards["engine"], rewards["bare"], atol=0.05 if options.bf16 else 1e-5)

    parameters = sum(parameter.numel() for parameter in model.parameters())
    fastest = options.rows / min(wall["bare"])
    print(f"{parameters / 1e6:.1f} M parameters; bare loop, fastest turn: {fastest:.1f} sequences/s")
    print(f"{'ratio of':<10}{'':<12}{'median':>8}{'95 % interval':>17}{'quartiles':>15}")
    results: dict[str, dict] = {}
    for kind, times in (("wall time", wall), ("CPU time", cpu)):
        for arm in ("bare again", "engine"):
            result = results.setdefault(kind, {})[arm] = ratios_to_bare(times, arm)
            low, high = result["interval"]
            first, third = result["quartiles"]
            print(
                f"{kind:<10}{arm:<12}{result['median']:>8.3f}{f'{low:.3f}-{high:.3f}':>17}"
                f"{f'{first:.3f}-{third:.3f}':>15}"
            )
    if options.json:
        command = shlex.join(["python", "benchmarks/scoring_throughput.py", *sys.argv[1:]])
        content = {
            "command": command,
            "options": vars(options),
            "parameters": parameters,
            "torch": torch.__version__,
            "bare_sequences_per_second_of_the_fastest_turn": fastest,
            "ratios": results,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(content, indent=1, default=str) + "\n")
        print(f"Figures: {options.json}")


if __name__ == "__main__":
    main()
