"""What difficulty scores say at a glance: figures for `scores.json` and histograms."""

from pathlib import Path
from typing import Any

import numpy as np

from .difficulty_columns import TOKEN_ACCURACY, Difficulty

EXTREMES = 10  # examples named at either end
QUANTILES = {"minimum": 0.0, "q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95, "maximum": 1.0}


def summarize_difficulty(scores: Difficulty) -> dict[str, Any]:
    """Return the figures of difficulty scores.

    - `rows`, `without_labels`: examples, and those that have no score since they have no label token;
    - `scores`: of each, mean, standard deviation, quantiles, ids of the hardest and the easiest examples, and the rank
      correlation with the number of label tokens (a score that only measures length is no difficulty);
    - `rank_correlations`: between the scores, by `"el2n, grand"`; and, with several models, between each two models'
      as `"el2n_0, el2n_1"`: where they disagree, more seeds are needed;
    - `coverage`: of which share of the parameters GraNd is the norm, and what is missing; None without GraNd.
    """
    scored = scores.label_tokens > 0
    tokens = scores.label_tokens[scored]
    ids = [found for found, there in zip(scores.ids, scored, strict=True) if there]
    figures = {}
    for name, values in scores.columns.items():
        values = values[scored]
        easy = values if name.startswith(TOKEN_ACCURACY) else -values
        order = np.argsort(easy, kind="stable")  # the hardest first
        figures[name] = {
            "mean": float(values.mean()),
            "std": float(values.std()),
            **{label: float(np.quantile(values, q)) for label, q in QUANTILES.items()},
            "hardest": [ids[i] for i in order[:EXTREMES]],
            "easiest": [ids[i] for i in order[::-1][:EXTREMES]],
            "rank_correlation_with_label_tokens": rank_correlation(values, tokens),
        }
    return {
        "rows": len(scores.ids),
        "without_labels": int((~scored).sum()),
        "scores": figures,
        "rank_correlations": {
            f"{a}, {b}": rank_correlation(scores.columns[a][scored], scores.columns[b][scored])
            for a, b in _compared(scores)
        },
        "coverage": scores.coverage,
    }


def _compared(scores: Difficulty) -> list[tuple[str, str]]:
    """Return the names of columns that are worth comparing: different scores, and different models' of one."""
    groups = [list(scores.by)]
    groups += [[name for name in scores.columns if name.startswith(f"{score}_")] for score in scores.by]
    return [(a, b) for group in groups for i, a in enumerate(group) for b in group[i + 1 :]]


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Return Spearman's correlation, ties sharing the mean of their ranks; None where one does not vary. (n,), (n,)"""
    ranks = [_ranks(values) for values in (a, b)]
    if any(len(values) < 2 or values.std() == 0 for values in ranks):
        return None
    return float(np.corrcoef(*ranks)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[which]


def draw_difficulty(scores: Difficulty, path: Path) -> bool:
    """Write a histogram of each score, and return whether matplotlib is there to do it."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(4.2 * len(scores.by), 3.4), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(scores.by), squeeze=False)[0], scores.by, strict=True):
        values = scores.columns[name]
        values = values[np.isfinite(values)]
        axis.hist(values, bins=min(60, max(10, len(values) // 20)), color="#3b6fb6")
        axis.axvline(np.median(values), color="#4d4d4d", linewidth=1)
        axis.set_xlabel(f"{name} (line: median)")
        axis.set_ylabel("examples")
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    return True
