"""Asked after experiment 3 was read: is what the judge likes more than shorter answers?

python human_lengths.py --output OUT/human --folder ../../../docs/results/selection

Lets the policies of some arms write again, with the random numbers of the study, and compares the judge's rewards at
the same length: the answers of `random` say, in ten classes of length, what the judge gives an answer of that length.
"""

from pathlib import Path

import numpy as np
from arms import reading_arguments, use
from human import PROMPTS, read_rows, rewards, write_answers
from scipy.stats import spearmanr
from transformers import AutoTokenizer

use("reweighting")
from common import mean_and_interval, show, write_json  # noqa: E402

ARMS = ("random-0.25", "fifa_modular-0.25", "margin-0.25", "full")
CLASSES = 10


def write_and_judge(output: Path, seed: int, arm: str, prompts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens and the judge's reward of what an arm's policy writes. (n,) each"""
    policy = output / f"seed{seed}" / "arms" / arm
    end = AutoTokenizer.from_pretrained(policy).eos_token_id
    answers = [answer[: answer.index(end)] if end in answer else answer for answer in write_answers(policy, prompts)]
    return np.array([len(answer) for answer in answers]), np.array(rewards(output / "judge/judge", prompts, answers))


def at_the_same_length(lengths: np.ndarray, found: np.ndarray, of: np.ndarray, expected: np.ndarray) -> float:
    """Return the mean of `found` minus that of answers of the same class of length, `expected` of lengths `of`."""
    edges = np.unique(np.quantile(of, np.linspace(0, 1, CLASSES + 1)))[1:-1]
    classes, own = np.searchsorted(edges, of, side="right"), np.searchsorted(edges, lengths, side="right")
    means = {each: expected[classes == each].mean() for each in np.unique(classes)}
    return float(np.mean([reward - means[each] for reward, each in zip(found, own, strict=True) if each in means]))


def main() -> None:
    """Write human_lengths.json, and print it."""
    args = reading_arguments(__doc__)
    prompts = [row["prompt"] for row in read_rows(args.output / "data/held_out.jsonl")[:PROMPTS]]
    found: dict[str, dict[str, list[float]]] = {arm: {} for arm in ARMS}
    for seed in args.seeds:
        base = write_and_judge(args.output, seed, ARMS[0], prompts)
        for arm in ARMS:
            lengths, judged = base if arm == ARMS[0] else write_and_judge(args.output, seed, arm, prompts)
            figures = {"judge": judged.mean(), "tokens": lengths.mean(),
                       "judge_and_length": spearmanr(judged, lengths).statistic,
                       "at_the_same_length": at_the_same_length(lengths, judged, *base)}  # fmt: skip
            for name, value in figures.items():
                found[arm].setdefault(name, []).append(float(value))
    summary = {arm: {name: mean_and_interval(values) for name, values in of.items()} for arm, of in found.items()}
    write_json(args.folder / "human_lengths.json", summary)
    for arm, row in summary.items():
        print(arm, ", ".join(f"{name} {show(interval, 2)}" for name, interval in row.items()))


if __name__ == "__main__":
    main()
