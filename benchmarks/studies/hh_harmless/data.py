"""The pairs of `hh_harmless`: read, cut to what a tiny model reads in the time there is, and divided."""

import gzip
import json
import random
from pathlib import Path

ANSWER = "\n\nAssistant:"
PROMPT_CHARACTERS, ANSWER_CHARACTERS = 120, 160
HELD_OUT = 400


def read_pairs(path: Path) -> list[dict[str, str]]:
    """Return the pairs with columns prompt, chosen, rejected and opening (the dialogue's first turn).

    The prompt goes up to the last answer of the assistant and keeps its end, an answer keeps its beginning. Pairs
    whose dialogues part before that answer, and pairs with an empty answer, are left out.
    """
    pairs = []
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    for row in rows:
        prompt, _, chosen = row["chosen"].rpartition(ANSWER)
        other, _, rejected = row["rejected"].rpartition(ANSWER)
        if prompt != other or not chosen.strip() or not rejected.strip():
            continue
        pairs.append(
            {
                "prompt": (prompt + ANSWER)[-PROMPT_CHARACTERS:],
                "chosen": chosen[:ANSWER_CHARACTERS],
                "rejected": rejected[:ANSWER_CHARACTERS],
                "opening": prompt.partition(ANSWER)[0],
            }
        )
    return pairs


def divide(pairs: list[dict[str, str]]) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Return training and held-out pairs, the same for every seed; dialogues of one opening stay together."""
    openings = sorted({pair["opening"] for pair in pairs})
    random.Random("hh_harmless").shuffle(openings)
    by_opening = {opening: [] for opening in openings}
    for pair in pairs:
        by_opening[pair["opening"]].append({key: pair[key] for key in ("prompt", "chosen", "rejected")})
    held_out, train = [], []
    for group in by_opening.values():
        (held_out if len(held_out) < HELD_OUT else train).extend(group)
    return train, held_out


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    """Write rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
