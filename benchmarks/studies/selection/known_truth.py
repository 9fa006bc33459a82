"""Experiment 1: DPO on a part of synthetic pairs whose true reward is known, among them noise, junk and near-copies.

python known_truth.py --output OUT                 runs what is not there yet
python known_truth.py --output OUT --check         one short run of each kind of arm on a seed that counts for nothing
python known_truth.py --output OUT --summary FOLDER
"""

import argparse
import json
import random
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from arms import SEEDS, keep, names, use
from datasets import Dataset
from transformers import TrainerCallback

use("preference")
from measure import Measure  # noqa: E402
from world import PLAIN, World, load_policy, load_tokenizer, make_policy, margins, train_reward_model  # noqa: E402

use("reweighting")
from common import load_all, mean_and_interval, paired, run_all, show, write_json  # noqa: E402

from hf_gradkit import DPOConfig, DPOTrainer  # noqa: E402
from hf_gradkit.data.synthetic_pairs import preference_rows, true_reward  # noqa: E402

PAIRS, HELD_OUT, FOLDS = 2000, 128, 3
FLIPPED, JUNK, COPIES, COPIED_PROMPTS = 0.15, 0.15, 0.30, 4
FRACTIONS = [0.01, 0.05, 0.1, 0.25]
STEPS, RATE, BETA = 120, 1e-3, 0.1
CHECKPOINTS = (10, 20, 40, 80, STEPS)
SAMPLES = 16
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def make_pairs(seed: int) -> list[dict]:
    """Return pairs with columns prompt, chosen, rejected, true_margin and kind, shuffled.

    `plain`: as `hf_gradkit.data.synthetic_pairs` makes them, medium quality. `flipped`: of these, labels exchanged.
    `junk`: the prompt is random letters, the answers are two of other prompts, and the label says nothing.
    `copy`: a pair about one of four prompts, which differs by a mark at its end, and whose answers lack one word.
    """
    rng = random.Random(f"selection-{seed}")
    rows = preference_rows(PAIRS, seed, "medium")
    junk, copies = int(JUNK * PAIRS), int(COPIES * PAIRS)
    prompts = rng.sample(sorted({row["prompt"] for row in rows}), COPIED_PROMPTS)
    sources = [row for row in rows if row["prompt"] in prompts]
    made = []
    for row in rows[: PAIRS - junk - copies]:
        made.append({**row, "kind": "plain"})
    for _ in range(junk):
        words = ["".join(rng.choices(LETTERS, k=rng.randint(2, 7))) for _ in range(rng.randint(3, 8))]
        first, second = rng.sample(rows, 2)
        answers = {"chosen": first["chosen"], "rejected": second["chosen"]}
        made.append({"prompt": " ".join(words) + ".", **answers, "true_margin": 0.0, "kind": "junk"})
    for _ in range(copies):
        row = rng.choice(sources)
        sides = {side: _without_a_word(row[side], rng) for side in ("chosen", "rejected")}
        prompt = row["prompt"].rstrip(".") + rng.choice([".", "!", " .", " !", "..", "?"])
        margin = true_reward(row["prompt"], sides["chosen"]) - true_reward(row["prompt"], sides["rejected"])
        made.append({"prompt": prompt, **sides, "true_margin": margin, "kind": "copy"})
    for row in made:
        if row["kind"] == "plain" and rng.random() < FLIPPED:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
            row["true_margin"], row["kind"] = -row["true_margin"], "flipped"
    rng.shuffle(made)
    return made


def _without_a_word(text: str, rng: random.Random) -> str:
    words = text.split()
    if len(words) > 2:
        words.pop(rng.randrange(len(words)))
    return " " + " ".join(words)


def cross_fit(policy: Path, pairs: list[dict], seed: int, output: Path) -> None:
    """Give each pair, as `cross_fitted`, its margin by a reward model that was trained on the other folds' pairs."""
    tokenizer = load_tokenizer(policy)
    for fold in range(FOLDS):
        rest = [pair for i, pair in enumerate(pairs) if i % FOLDS != fold]
        model = train_reward_model(policy, rest, seed, output)
        for pair, margin in zip(pairs[fold::FOLDS], margins(model, tokenizer, pairs[fold::FOLDS]), strict=True):
            pair["cross_fitted"] = margin


def make_world(seed: int, output: Path) -> World:
    """Make policy, pairs with cross-fitted margins, and the proxy reward model of a seed, once."""
    policy = make_policy(seed, output)
    folder = output / "worlds" / f"seed{seed}"
    held_out = preference_rows(HELD_OUT, seed, "medium", split="test")
    if not (folder / "pairs.json").exists():
        pairs = make_pairs(seed)
        cross_fit(policy, pairs, seed, output)
        model = train_reward_model(policy, pairs, seed, output)
        model.save_pretrained(folder / "reward")
        write_json(folder / "pairs.json", pairs)
    return World(policy, folder / "reward", json.loads((folder / "pairs.json").read_text()), held_out)


class _Curve(TrainerCallback):
    """Measures the policy at some steps."""

    def __init__(self, measure: Measure, last: int):
        self.measure, self.last, self.points = measure, last, []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step in (*CHECKPOINTS, self.last):
            self.points.append({"step": state.global_step, **self.measure(model, SAMPLES)})


def train(
    world: World, kept: Dataset, seed: int, output: Path, steps: int = STEPS, callbacks: Sequence[TrainerCallback] = ()
) -> None:
    """Train the seed's policy on some of its pairs, with the settings of every arm."""
    args = DPOConfig(
        output_dir=str(output / "trainer"), max_steps=steps, learning_rate=RATE, beta=BETA,
        lr_scheduler_type="constant_with_warmup", warmup_steps=10, precompute_ref_log_probs=True, seed=seed, **PLAIN,
    )  # fmt: skip
    trainer = DPOTrainer(
        model=load_policy(world.policy),
        args=args,
        train_dataset=kept.select_columns(["prompt", "chosen", "rejected"]),
        processing_class=load_tokenizer(world.policy),
        callbacks=[*callbacks],
    )
    trainer.train()


def run(seed: int, arm: str, output: Path, steps: int = STEPS) -> dict:
    """Train one arm from the seed's policy and return its curve and what it was trained on."""
    world = make_world(seed, output)
    dataset = Dataset.from_list(world.pairs)
    kept, report = keep(arm, dataset, world.policy, seed, output / "cache")
    # Of the training pairs, those that are as the generator makes them: junk has no true margin to agree with.
    plain = World(world.policy, world.reward, [p for p in world.pairs if p["kind"] == "plain"], world.held_out)
    curve = _Curve(Measure(plain, "test"), steps)
    train(world, kept, seed, output, steps, [curve])
    kinds = {kind: kept["kind"].count(kind) / len(kept) for kind in ("plain", "flipped", "junk", "copy")}
    length = {key: report[key] for key in ("margin_and_length", "entropy") if key in report}
    true = statistics.fmean(kept["true_margin"])
    return {"curve": curve.points, "kept": len(kept), "kinds": kinds, "mean_true_margin": true, **length}


def summarise(results: dict[str, dict[int, dict]], folder: Path) -> None:
    """Print each arm's true reward and its difference to the full set and to random of the same size."""
    last = {
        arm: {seed: r["curve"][-1] for seed, r in of_seed.items() if r["curve"][-1]["step"] == STEPS}
        for arm, of_seed in results.items()
    }
    table = {}
    for arm, of_seed in last.items():
        true = {seed: point["true"] for seed, point in of_seed.items()}
        twin = f"random-{arm.rpartition('-')[2]}" if arm != "full" else "full"
        row = {
            "true": mean_and_interval(list(true.values())),
            "to_full": paired(true, {seed: point["true"] for seed, point in last["full"].items()}),
            "to_random": paired(true, {seed: point["true"] for seed, point in last[twin].items()}),
            "held_out_accuracy": mean_and_interval([point["held_out_accuracy"] for point in of_seed.values()]),
            "kinds": {
                kind: statistics.fmean(r["kinds"][kind] for r in results[arm].values())
                for kind in ("plain", "flipped", "junk", "copy")
            },
            "steps_to_full": steps_to_full(results[arm], last["full"]),
        }
        table[arm] = row
        print(f"{arm:18} true {show(row['true'], 2)}  to full {show(row['to_full'], 2)}  "
              f"to random {show(row['to_random'], 2)}")  # fmt: skip
    write_json(folder / "known_truth.json", table)


def steps_to_full(of_seed: dict[int, dict], full: dict[int, dict], figure: str = "true") -> list[int | None]:
    """Return, for each seed, the first checkpoint at which an arm has the full set's last figure: true reward."""
    reached = []
    for seed, result in of_seed.items():
        steps = [point["step"] for point in result["curve"] if point[figure] >= full[seed][figure]]
        reached.append(steps[0] if steps else None)
    return reached


def main() -> None:
    """Run the arms that are not there yet, or sum them up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--summary", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    every = dict.fromkeys(names(FRACTIONS))
    if args.summary:
        summarise(load_all(args.output, args.seeds, every), args.summary)
    elif args.check:
        some = [
            "full",
            "random-0.1",
            "fifa_modular-0.1",
            "fifa_greedy-0.01",
            "margin-0.1",
            "quality-0.1",
            "diversity-0.1",
        ]
        run_all(args.output / "check", [1000], dict.fromkeys(some), lambda s, a: run(s, a, args.output / "check", 10))
    else:
        run_all(args.output, args.seeds, every, lambda seed, arm: run(seed, arm, args.output))


if __name__ == "__main__":
    main()
