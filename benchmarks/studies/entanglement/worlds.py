"""What the runs of a seed share: a policy, training and held-out pairs.

Policies, reward models and their margins are those of the studies `preference` and `hh_harmless`, read from the
folders that these wrote; what of `preference` is missing there is made by its own code.
"""

import json
import math
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

sys.path.append(str(Path(__file__).resolve().parents[1] / "preference"))

import world as preference
from measure import Measure

from hf_gradkit.data.synthetic_pairs import base_rows, prompts, true_reward

COLUMNS = ("prompt", "chosen", "rejected", "reward_margin")
QUALITY = "medium"
SHARED_WORDS, OWN_WORDS = 5, (1, 4)
# What the two answers of a pair have besides their own words.
CONDITIONS = ("bare", "separate", "prefix", "suffix")


@dataclass(frozen=True)
class World:
    """The pairs and the policy of one seed.

    Attributes:
        policy: folder of the policy that all runs start from, the reference too.
        train: pairs with the columns `COLUMNS`, the margin only where there is a reward model.
        held_out: pairs that are not trained on.
        measure: true reward and KL of a policy, where the truth is known.
    """

    policy: Path
    train: list[dict]
    held_out: list[dict]
    measure: Measure | None = None


def synthetic(seed: int, folder: Path) -> World:
    """Return the world of a seed of `preference`, medium quality, with the margins of its reward model."""
    preference.make_policy(seed, folder)
    made = preference.make_world(seed, QUALITY, folder)
    train = [_columns({**pair, "reward_margin": pair["in_sample"]}) for pair in made.pairs]
    return World(made.policy, train, [_columns(pair) for pair in made.held_out], Measure(made, "test"))


def hh(seed: int, folder: Path) -> World:
    """Return the world of a seed of `hh_harmless`, with the margins of its reward model."""
    scored = folder / f"seed{seed}" / "scores" / "in_sample" / "scored.parquet"
    held_out = (folder / "data" / "held_out.jsonl").read_text(encoding="utf-8").splitlines()
    return World(
        folder / f"seed{seed}" / "policy",
        [_columns(row) for row in pq.read_table(scored).to_pylist()],
        [_columns(json.loads(line)) for line in held_out],
    )


def shared(seed: int, folder: Path, condition: str) -> World:
    """Return pairs whose answers share a long prefix, a long suffix or nothing; their own words are the same in all.

    A pair's two answers have 1 to 4 words of their own, by whose true reward it is labelled (Bradley-Terry).
    `bare` is these alone. `prefix` puts five words in front of them and `suffix` behind them, the same in both;
    `separate` puts five others in front of each.
    """
    policy = preference.make_policy(seed, folder)
    train = _shared_pairs(1280, f"train-{seed}", "train", condition)
    return World(policy, train, _shared_pairs(128, f"test-{seed}", "test", condition))


def _shared_pairs(n: int, seed: str, split: str, condition: str) -> list[dict]:
    rng = random.Random(seed)  # draws the same in every condition
    every = {word for row in base_rows(500) for word in row["completion"].split()}
    words = sorted(every - {"very", "not"})
    pairs = []
    for prompt in rng.choices(prompts(split), k=n):
        drawn = rng.sample(words, 2 * (SHARED_WORDS + OWN_WORDS[1]))
        fillers = drawn[:SHARED_WORDS], drawn[SHARED_WORDS : 2 * SHARED_WORDS]
        rest = drawn[2 * SHARED_WORDS :]
        own = [rest[:4][: rng.randint(*OWN_WORDS)], rest[4:][: rng.randint(*OWN_WORDS)]]
        own.sort(key=lambda answer: true_reward(prompt, " ".join(answer)) + _gumbel(rng), reverse=True)
        if condition == "separate":
            own = [filler + answer for filler, answer in zip(fillers, own, strict=True)]
        elif condition == "prefix":
            own = [fillers[0] + answer for answer in own]
        elif condition == "suffix":
            own = [answer + fillers[0] for answer in own]
        chosen, rejected = (" " + " ".join(answer) for answer in own)
        pairs.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return pairs


def _gumbel(rng: random.Random) -> float:
    """Draw what makes the larger of two sums a draw by Bradley-Terry."""
    return -math.log(rng.expovariate(1.0))


def _columns(row: dict) -> dict:
    return {name: row[name] for name in COLUMNS if name in row}
