"""How near a generated suffix comes to the true one, in tokens."""

from collections.abc import Sequence

import numpy as np


def hamming(guess: Sequence[int], truth: Sequence[int]) -> int:
    """Return in how many of the true suffix's places the guess has another token, or none."""
    return sum(i >= len(guess) or guess[i] != token for i, token in enumerate(truth))


def edit_distance(guess: Sequence[int], truth: Sequence[int]) -> int:
    """Return how many insertions, deletions and substitutions turn one into the other (Levenshtein)."""
    row = np.arange(len(truth) + 1)
    truth = np.asarray(truth)
    places = np.arange(len(truth) + 1)
    for i, token in enumerate(guess):
        without = np.empty_like(row)
        without[0] = i + 1
        without[1:] = np.minimum(row[1:] + 1, row[:-1] + (truth != token))
        row = np.minimum.accumulate(without - places) + places  # insertions run on along the row
    return int(row[-1])


def longest_common_run(guess: Sequence[int], truth: Sequence[int]) -> int:
    """Return the length of the longest run of tokens that both contain."""
    best, row = 0, np.zeros(len(truth) + 1, dtype=np.int64)
    truth = np.asarray(truth)
    for token in guess:
        row[1:] = np.where(truth == token, row[:-1] + 1, 0)
        best = max(best, int(row.max()))
    return best


def recall_at_errors(scores: np.ndarray, right: np.ndarray, errors: int = 100) -> float:
    """Return the share of all examples whose guess is right and ranked before the `errors`-th wrong guess.

    The figure of the training data extraction challenge: guesses are submitted from the surest on.

    Args:
        scores: how sure each guess is. (n,)
        right: whether it is the true suffix. (n,) bool
        errors: wrong guesses that end the list, at least 1; with fewer in all, every right guess counts.
    """
    ordered = np.asarray(right, dtype=bool)[np.argsort(-np.asarray(scores), kind="stable")]
    wrong = np.flatnonzero(~ordered)
    end = wrong[errors - 1] if len(wrong) >= errors else len(ordered)
    return float(ordered[:end].sum() / len(ordered))
