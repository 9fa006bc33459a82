"""Per-example gradient norms: the recorder against Opacus and torch.func, on a model that all of them can run.

    pip install opacus
    python benchmarks/per_example_norms.py                             # 19M parameters, 8 rows of 256 tokens
    python benchmarks/per_example_norms.py --hidden 1024 --layers 12 --device cuda

A GPT-NeoX (Linear, LayerNorm, Embedding; no weight used twice), eager attention, float32. Each arm computes the
gradient of the same loss and the norm of every row's gradient; arms take turns, and ratios are to the plain forward
and backward of the same round, which computes no norms. All norms are compared with the recorder's first.

    recorder          record_gradients(mode="norms"), and the gradient for training besides
    opacus            GradSampleModule: holds every row's gradient
    opacus ghost      GradSampleModuleFastGradientClipping: norms from activations; its own clipped gradient would
                      need a second backward pass, which is not counted here
    vmap(grad)        torch.func: holds every row's gradient
    row by row        a forward and a backward for each row

Peak memory is of one process an arm: what it adds to the memory before its first pass.
"""

import argparse
import json
import multiprocessing
import os
import random
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from paired import current_rss, interval, peak_rss
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from hf_gradkit.gradients import record_gradients

Arm = Callable[[], Tensor | None]


def make_model(options: argparse.Namespace) -> GPTNeoXForCausalLM:
    """Return the model, the same for every arm, without dropout."""
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        intermediate_size=4 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 64,
        max_position_embeddings=options.length,
        attn_implementation="eager",
        tie_word_embeddings=False,
        use_cache=False,
    )
    return GPTNeoXForCausalLM(config).train().to(options.device)  # Opacus records in training mode only; no dropout


def row_losses(logits: Tensor, ids: Tensor) -> Tensor:
    """Return the mean cross-entropy of each row. (r, t, v) -> (r,)"""
    scores = logits[:, :-1].flatten(0, 1)
    losses = nn.functional.cross_entropy(scores, ids[:, 1:].flatten(), reduction="none")
    return losses.view(len(ids), -1).mean(1)


def make_arm(name: str, options: argparse.Namespace) -> Arm:
    """Return what runs one pass of an arm and gives the norms, or None for the plain pass. (r,)"""
    model = make_model(options)
    ids = torch.randint(0, options.vocabulary, (options.rows, options.length), device=options.device)
    return {
        "plain": plain,
        "recorder": recorder,
        "opacus": opacus,
        "opacus ghost": ghost,
        "vmap(grad)": materialised,
        "row by row": row_by_row,
    }[name](model, ids)


def plain(model: nn.Module, ids: Tensor) -> Arm:
    def run() -> None:
        model.zero_grad()
        row_losses(model(ids).logits, ids).mean().backward()

    return run


def recorder(model: nn.Module, ids: Tensor) -> Arm:
    def run() -> Tensor:
        model.zero_grad()
        with record_gradients(model, mode="norms") as record:
            row_losses(model(ids).logits, ids).mean().backward()
        return record.norms() * len(ids)

    return run


def opacus(model: nn.Module, ids: Tensor) -> Arm:
    from opacus.grad_sample import GradSampleModule

    wrapped = GradSampleModule(model, loss_reduction="mean")

    def run() -> Tensor:
        wrapped.zero_grad()
        row_losses(wrapped(ids).logits, ids).mean().backward()
        squares = [p.grad_sample.flatten(1).square().sum(1) for p in wrapped.parameters()]
        return torch.stack(squares).sum(0).sqrt()

    return run


def ghost(model: nn.Module, ids: Tensor) -> Arm:
    from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping

    wrapped = GradSampleModuleFastGradientClipping(model, loss_reduction="mean", use_ghost_clipping=True)

    def run() -> Tensor:
        wrapped.zero_grad()
        row_losses(wrapped(ids).logits, ids).mean().backward()
        return wrapped.get_norm_sample()

    return run


def materialised(model: nn.Module, ids: Tensor) -> Arm:
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(weights: dict[str, Tensor], row: Tensor) -> Tensor:
        return row_losses(functional_call(model, weights, (row[None],)).logits, row[None]).mean()

    def run() -> Tensor:
        gradients = vmap(grad(loss), in_dims=(None, 0))(parameters, ids)
        return torch.stack([g.flatten(1).square().sum(1) for g in gradients.values()]).sum(0).sqrt()

    return run


def row_by_row(model: nn.Module, ids: Tensor) -> Arm:
    def run() -> Tensor:
        norms = []
        for row in ids:
            model.zero_grad()
            row_losses(model(row[None]).logits, row[None]).mean().backward()
            norms.append(torch.stack([p.grad.square().sum() for p in model.parameters()]).sum().sqrt())
        return torch.stack(norms)

    return run


def timed(arm: Arm, device: str) -> float:
    """Return the seconds of one pass."""
    start = time.perf_counter()
    arm()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak(name: str, options: argparse.Namespace, result: Any) -> None:
    """Put the MiB that an arm adds at its peak, in a process of its own."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    arm = make_arm(name, options)
    if options.device == "cuda":
        before = torch.cuda.memory_allocated()
        arm(), arm()
        result.put((torch.cuda.max_memory_allocated() - before) / 2**20)
    else:
        before = current_rss()
        arm(), arm()
        result.put(peak_rss() - before)


def memory(names: list[str], options: argparse.Namespace) -> dict[str, float]:
    """Return each arm's peak."""
    context, found = multiprocessing.get_context("spawn"), {}
    # Large blocks go back to the system as soon as they are free, so that resident memory is what is in use.
    os.environ.update(MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536", MALLOC_ARENA_MAX="2")
    for name in names:
        queue = context.Queue()
        process = context.Process(target=peak, args=(name, options, queue))
        process.start()
        found[name] = queue.get()
        process.join()
    return found


def main() -> None:
    """Run the benchmark and print its table."""
    names = ["plain", "recorder", "opacus", "opacus ghost", "vmap(grad)", "row by row"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--layers", type=int, default=7)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    arms = {}
    for name in names:
        torch.manual_seed(0)
        arms[name] = make_arm(name, options)
    reference = arms["recorder"]()
    for name in names[2:]:
        error = ((arms[name]() - reference).abs() / reference).max().item()
        assert error < 1e-3, f"{name} differs from the recorder by {error:.1e}"
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(options.rounds):
        for name in random.Random(number).sample(names, len(names)):
            times[name].append(timed(arms[name], options.device))
    peaks = memory(names, options)
    parameters = sum(p.numel() for p in make_model(options).parameters())
    print(
        f"{parameters / 1e6:.0f}M parameters, {options.rows} rows of {options.length} tokens; {options.rounds} rounds"
    )
    base = times["plain"]
    print(f"The plain pass: {statistics.median(base) * 1000:.0f} ms, {peaks['plain']:.0f} MiB")
    print(f"{'':<14}{'time ratio':>11}{'95 % interval':>17}{'added time':>12}{'peak memory ratio':>20}")
    results = {}
    for name in names:
        ratios = [a / b for a, b in zip(times[name], base, strict=True)]
        low, high = interval(ratios)
        median, of_memory = statistics.median(ratios), peaks[name] / peaks["plain"]
        print(f"{name:<14}{median:>11.3f}{f'{low:.3f}-{high:.3f}':>17}{median - 1:>12.3f}{of_memory:>20.3f}")
        results[name] = {"time": median, "interval": [low, high], "memory": of_memory}
    if options.json:
        options.json.write_text(json.dumps({"options": vars(options), "arms": results}, indent=1, default=str) + "\n")
        print(f"Figures: {options.json}")


if __name__ == "__main__":
    main()
