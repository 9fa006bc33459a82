"""What a privacy audit costs, in one run on one machine.

    python benchmarks/audit_cost.py                      # some minutes on one CPU core
    python benchmarks/audit_cost.py --hidden 2048 --layers 16 --length 1024 --rows 2048 --device cuda --bf16

Three questions, each answered by the ratio of times of the same turn, the arms taking turns in a new order each turn:

1. All token-level scores, from the forward passes to the scores on disk, against the bare forward passes of target and
   reference that they need (TRL's fused head, log-probabilities only, in batches sorted by length).
2. (n, p)-discoverable extraction against drawing n samples of every suffix, for n = 100.
3. All scores against one document at a time, as public tools run it: tokens per second. There each document's logits
   become log-probabilities of the whole vocabulary, of which Min-K%++ takes mean and variance.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scoring_throughput import interval, measure
from transformers import LlamaConfig, LlamaForCausalLM

from hf_gradkit.audit.attacks import build_attacks
from hf_gradkit.audit.generation import Attempt, GenerationScorer
from hf_gradkit.audit.models import AuditedModel
from hf_gradkit.audit.sampling import Sampling
from hf_gradkit.audit.suffixes import Prompt, SuffixScorer
from hf_gradkit.audit.token_records import outputs_for, score_tokens, token_records
from hf_gradkit.scoring import TokenRow, token_statistics


def make_model(options: argparse.Namespace, seed: int) -> LlamaForCausalLM:
    """Return a language model with random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        intermediate_size=3 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=options.length + 64,
    )
    model = LlamaForCausalLM(config).to(options.device).eval()
    return model.bfloat16() if options.bf16 else model


def make_rows(options: argparse.Namespace) -> list[TokenRow]:
    """Return texts of a quarter of `length` to `length` tokens."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(options.length // 4, options.length, options.rows, endpoint=True)
    return [TokenRow(ids, ids, i) for i, n in enumerate(lengths) for ids in [rng.integers(1, options.vocabulary, n)]]


@torch.inference_mode()
def bare(models: list[LlamaForCausalLM], rows: list[TokenRow], batch: int) -> np.ndarray:
    """Return the mean loss of each text under both models, with as little as there can be around the forwards."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    losses = np.empty((2, len(rows)))
    for which, model in enumerate(models):
        with token_statistics(model) as statistics:
            for start in range(0, len(order), batch):
                picked = order[start : start + batch]
                losses[which, picked] = statistics([rows[i] for i in picked]).losses().cpu().numpy()
    return losses


def all_scores(models: list[LlamaForCausalLM], rows: list[TokenRow], batch: int) -> np.ndarray:
    """Return the same losses, and compute and keep every token-level score besides."""
    attacks = build_attacks(None, {}, reference=True)
    with tempfile.TemporaryDirectory() as folder:
        found = score_tokens(_Named(*models), rows, outputs_for(attacks), folder, batch)
        sizes = np.array([len(zlib.compress(row.input_ids.tobytes())) for row in rows])
        records = token_records(found, sizes)
        scores = {name: attack(records) for name, attack in attacks.items()}
    assert all(np.isfinite(values).all() for values in scores.values())
    return np.array([[record.target.loss for record in records], [record.base.loss for record in records]])


@torch.inference_mode()
def one_at_a_time(models: list[LlamaForCausalLM], rows: list[TokenRow]) -> np.ndarray:
    """Return the same losses from plain logits, and compute what the token-level scores need besides."""
    losses = np.empty((2, len(rows)))
    for i, row in enumerate(rows):
        ids = torch.from_numpy(row.input_ids)[None].to(models[0].device)
        for which, model in enumerate(models):
            log_p = model(input_ids=ids, use_cache=False).logits[0, :-1].float().log_softmax(-1)
            losses[which, i] = -log_p.gather(1, ids[0, 1:, None]).mean()
            if which == 0:
                p = log_p.exp()
                mean = (p * log_p).sum(-1)
                variance = (p * log_p.square()).sum(-1) - mean.square()
                figures = [mean, variance, log_p.argmax(-1) == ids[0, 1:]]
                assert all(len(figure) == len(row) - 1 for figure in figures)
    return losses


class _Named(AuditedModel):
    """Two models in memory that need not be hashed: a benchmark audits each set once."""

    def content(self, which: str) -> str:
        return which


def suffixes(model: LlamaForCausalLM, prompts: list[Prompt], batch: int) -> np.ndarray:
    """Return p_z of every prompt."""
    scorer = SuffixScorer(model, Sampling(), len(prompts[0].suffix))
    parts = [scorer.score(prompts[i : i + batch])["sampled"] for i in range(0, len(prompts), batch)]
    return np.concatenate(parts).prod(1)


def samples(model: LlamaForCausalLM, prompts: list[Prompt], batch: int, n: int) -> np.ndarray:
    """Return how many of n samples of each prompt are its suffix; all in batches."""
    scorer = GenerationScorer(model, Sampling(), len(prompts[0].suffix), None, seed=0)
    attempts = [Attempt(prompt, k) for prompt in prompts for k in range(n)]
    parts = [scorer.score(attempts[i : i + batch])["guess"] for i in range(0, len(attempts), batch)]
    truths = np.repeat(np.stack([prompt.suffix for prompt in prompts]), n, axis=0)
    return (np.concatenate(parts) == truths).all(1).reshape(len(prompts), n).sum(1)


def compare(arms: dict[str, Callable[[], np.ndarray]], turns: int) -> dict[str, list[float]]:
    """Return the wall times of each arm, the first turn left out."""
    shuffled = random.Random(0)
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    for number in range(turns + 1):
        for arm in shuffled.sample(list(arms), len(arms)):
            took, _, _ = measure(arms[arm])
            if number:
                times[arm].append(took)
    return times


def ratio(times: dict[str, list[float]], arm: str, base: str) -> dict[str, object]:
    """Return the median ratio of two arms' times of the same turns, with its interval."""
    ratios = [a / b for a, b in zip(times[arm], times[base], strict=True)]
    return {"median": statistics.median(ratios), "interval": interval(ratios), "ratios": ratios}


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--prompts", type=int, default=2, help="prompts that are sampled")
    parser.add_argument("--samples", type=int, default=100, help="samples a prompt")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    models, rows = [make_model(options, seed) for seed in (0, 1)], make_rows(options)

    expected = bare(models, rows, options.batch)
    assert np.allclose(expected, all_scores(models, rows, options.batch), atol=1e-2)
    assert np.allclose(expected, one_at_a_time(models, rows), atol=1e-2)
    arms = {
        "bare": lambda: bare(models, rows, options.batch),
        "bare again": lambda: bare(models, rows, options.batch),
        "all scores": lambda: all_scores(models, rows, options.batch),
        "one at a time": lambda: one_at_a_time(models, rows),
    }
    times = compare(arms, options.turns)
    found = {f"{arm} / bare": ratio(times, arm, "bare") for arm in ("bare again", "all scores")}
    found["one at a time / all scores"] = ratio(times, "one at a time", "all scores")

    prompts = [Prompt(row.input_ids[:16], row.input_ids[16:32], i) for i, row in enumerate(rows[: options.prompts])]
    extraction = {
        "suffixes": lambda: suffixes(models[0], prompts, options.batch),
        "samples": lambda: samples(models[0], prompts, options.batch, options.samples),
    }
    times |= compare(extraction, max(2, options.turns // 4))
    found["samples / suffixes"] = ratio(times, "samples", "suffixes")

    tokens = 2 * sum(len(row) for row in rows)
    print(f"{sum(p.numel() for p in models[0].parameters()) / 1e6:.1f} M parameters, {options.rows} texts")
    for name, of in found.items():
        low, high = of["interval"]
        print(f"{name:<28}{of['median']:>9.3f}   95 % interval {low:.3f}-{high:.3f}")
    for arm in ("all scores", "one at a time"):
        print(f"{arm:<28}{tokens / statistics.median(times[arm]):>9.0f}   tokens per second, both passes")
    if options.json:
        content = {"command": sys.argv, "options": vars(options), "torch": torch.__version__, "ratios": found}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(content, indent=1, default=str) + "\n")
        print(f"Figures: {options.json}")


if __name__ == "__main__":
    main()
