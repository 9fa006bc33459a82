"""The figures of one attack: AUC, true positive rates at low false positive rates, and how sure they are."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .intervals import bootstrap, clopper_pearson, percentiles
from .roc import area, null_error, rate_at, roc

ALPHAS = (0.001, 0.01, 0.1)
MOST_VERTICES = 200


@dataclass(frozen=True)
class Trial:
    """Examples whose membership is known, and how their figures are resampled.

    Attributes:
        members: which examples are members. (m + n,) bool
        clusters: the document of each example. (m + n,) int64
        alphas: false positive rates at which true positive rates are reported.
        rounds: bootstrap resamples.
        seed: of the resamples.
        level: confidence of the intervals.
    """

    members: np.ndarray
    clusters: np.ndarray
    alphas: tuple[float, ...] = ALPHAS
    rounds: int = 1000
    seed: int = 0
    level: float = 0.95

    @property
    def counts(self) -> tuple[int, int]:
        """m members and n non-members."""
        return int(self.members.sum()), int((~self.members).sum())

    def evaluate(self, scores: dict[str, np.ndarray], baselines: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
        """Return the figures of attacks from their scores, (m + n,) each, by name, as JSON can write them.

        - `auc`, `auc_interval` (bootstrap), `null_error` (standard error of an AUC that knows nothing);
        - `leaks`: whether .5 lies outside of the interval, on either side: a score that orders backwards tells
          members apart as well, read the other way;
        - `tpr`: for each false positive rate asked for, the largest true positive rate with at most that many false
          positives, the counts, `interval` (bootstrap, with the threshold chosen anew) and `exact` (Clopper-Pearson
          of the count), `fpr_exact` (of the false positives), and `supported`: False where there are fewer than
          1 / alpha non-members, so that the rate cannot be told from 0;
        - `over`: by how much the AUC is above that of each of the `baselines`, with its interval, on the same
          resamples;
        - `roc`: false and true positive rates, at most `MOST_VERTICES`.
        """
        drawn = {
            name: bootstrap(values, self.members, self.clusters, self.alphas, self.rounds, self.seed)
            for name, values in scores.items()
        }
        figures = {name: self._figures(values, drawn[name]) for name, values in scores.items()}
        for name, of_attack in figures.items():
            of_attack["over"] = {
                other: {
                    "auc": of_attack["auc"] - figures[other]["auc"],
                    "interval": percentiles(drawn[name]["auc"] - drawn[other]["auc"], self.level),
                }
                for other in baselines
                if other in figures and other != name
            }
        return figures

    def _figures(self, scores: np.ndarray, drawn: dict[Any, np.ndarray]) -> dict[str, Any]:
        m, n = self.counts
        false, true = roc(scores, self.members)
        interval = percentiles(drawn["auc"], self.level)
        return {
            "auc": float(area(false, true)[0]),
            "auc_interval": interval,
            "null_error": null_error(m, n),
            "leaks": not interval[0] - 1e-9 <= 0.5 <= interval[1] + 1e-9,
            "tpr": {f"{alpha:g}": self._rate(false, true, alpha, drawn[alpha]) for alpha in self.alphas},
            "roc": _thin(false[0], true[0]),
        }

    def _rate(self, false: np.ndarray, true: np.ndarray, alpha: float, drawn: np.ndarray) -> dict[str, Any]:
        m, n = self.counts
        tpr, fpr = (float(rate[0]) for rate in rate_at(false, true, alpha))
        hits, errors = round(tpr * m), round(fpr * n)
        return {
            "tpr": tpr,
            "true_positives": hits,
            "false_positives": errors,
            "interval": percentiles(drawn, self.level),
            "exact": clopper_pearson(hits, m, self.level),
            "fpr_exact": clopper_pearson(errors, n, self.level),
            "supported": alpha * n >= 1 - 1e-9,
        }


def _thin(false: np.ndarray, true: np.ndarray) -> dict[str, list[float]]:
    """Return a ROC as two lists, with vertices left out evenly over the logarithm of the false positive rate."""
    last = np.flatnonzero(np.append(false[1:] != false[:-1], True))  # the highest of each false positive rate
    if len(last) > MOST_VERTICES:
        last = last[np.unique(np.geomspace(1, len(last), MOST_VERTICES).astype(int) - 1)]
    return {"fpr": false[last].round(6).tolist(), "tpr": true[last].round(6).tolist()}
