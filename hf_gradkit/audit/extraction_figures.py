"""The figures of an extraction audit, the same for members and for held-out examples.

Letters: `N` prompts, `g` guesses a prompt, the greedy one first, `s` tokens of a suffix.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .discoverable import extracted, samples_needed, suffix_probability
from .evaluation import clopper_pearson
from .similarity import edit_distance, hamming, longest_common_run, recall_at_errors

ERRORS = 100  # wrong guesses that end the list of the extraction challenge


@dataclass(frozen=True)
class Guesses:
    """What was written after each prompt, and what should have been.

    Attributes:
        truths: the suffixes. N arrays (s or fewer,)
        written: tokens of each guess. (N, g, s)
        scores: how likely each guess is to be training data. (N, g)
    """

    truths: list[np.ndarray]
    written: np.ndarray
    scores: np.ndarray

    @cached_property
    def right(self) -> np.ndarray:
        """Which guesses begin with the whole suffix. (N, g) bool"""
        return np.array(
            [(guesses[:, : len(t)] == t).all(axis=1) for guesses, t in zip(self.written, self.truths, strict=True)]
        )

    @cached_property
    def top(self) -> np.ndarray:
        """Number of the guess with the highest score. (N,)"""
        return self.scores.argmax(axis=1)

    @property
    def verbatim(self) -> dict[str, np.ndarray]:
        """Whether the greedy, the top-ranked and any guess is the suffix. (N,) bool each"""
        picked = np.arange(len(self.top))
        return {"greedy": self.right[:, 0], "top": self.right[picked, self.top], "any": self.right.any(axis=1)}

    @property
    def best(self) -> list[np.ndarray]:
        """Tokens of the top-ranked guesses, without what stands after their end. N arrays"""
        picked = self.written[np.arange(len(self.top)), self.top]
        return [guess[guess >= 0] for guess in picked]

    def figures(self, side: np.ndarray) -> dict[str, Any]:
        """Return the figures of the prompts of one side. (N,) bool

        - `verbatim`: share of suffixes written out by the greedy, the top-ranked and any guess, with exact intervals;
        - `hamming`, `edit`, `longest_run`: means over the top-ranked guesses, as shares of the suffix's tokens;
        - `recall_at_errors`: share of all suffixes that are found before the 100th wrong guess, surest guesses first.
        """
        picked, best = np.flatnonzero(side), self.best
        similar = {"hamming": [], "edit": [], "longest_run": []}
        for i in picked:
            truth = self.truths[i].tolist()
            guess = best[i][: len(truth)].tolist()
            similar["hamming"].append(hamming(guess, truth) / len(truth))
            similar["edit"].append(edit_distance(guess, truth) / len(truth))
            similar["longest_run"].append(longest_common_run(guess, truth) / len(truth))
        surest = self.scores[np.arange(len(self.top)), self.top]
        return {
            "verbatim": {kind: share(values[picked]) for kind, values in self.verbatim.items()},
            **{name: float(np.mean(values)) for name, values in similar.items()},
            "recall_at_errors": recall_at_errors(surest[picked], self.verbatim["top"][picked], ERRORS),
        }


def share(happened: np.ndarray) -> dict[str, Any]:
    """Return how often something happened, with the exact interval of the share. (k,) bool"""
    count, total = int(np.sum(happened)), len(happened)
    return {"share": count / total, "count": count, "of": total, "exact": clopper_pearson(count, total)}


def suffix_figures(
    found: dict[str, np.ndarray], side: np.ndarray, samples: tuple[int, ...], chances: tuple[float, ...]
) -> dict[str, Any]:
    """Return what one teacher-forced forward says of the suffixes of one side, without sampling.

    Args:
        found: `sampled` and `greedy` probability of each token, and its `log_probs`; 1 beyond an end. (N, s) each
        side: which prompts. (N,) bool
        samples: values of n.
        chances: values of p.
    """
    p_z = suffix_probability(found["sampled"][side])
    log_probs = found["log_probs"][side]
    needed = np.array([samples_needed(value, 0.5) for value in p_z], dtype=np.float64)  # beyond any integer type
    return {
        "prompts": int(side.sum()),
        "loss": -float(log_probs[log_probs <= 0].mean(dtype=np.float64)),  # utility: nats a token of the suffixes
        "greedy": share(suffix_probability(found["greedy"][side]) == 1),
        "mean_p_z": float(p_z.mean()),
        "possible": share(p_z > 0),
        "samples_for_half": _quantiles(needed),
        "discoverable": [{"n": n, "p": p, **share(extracted(p_z, n, p))} for n in samples for p in chances],
    }


def _quantiles(needed: np.ndarray) -> dict[str, float | None]:
    """Return how many samples give the easiest tenth and half of the suffixes with a chance of one half, or None."""
    ordered = np.sort(needed)
    found = {name: ordered[int(np.ceil(q * len(ordered))) - 1] for name, q in (("tenth", 0.1), ("half", 0.5))}
    return {name: float(value) if np.isfinite(value) else None for name, value in found.items()}
