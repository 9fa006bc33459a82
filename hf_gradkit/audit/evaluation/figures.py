"""The figures of one attack: AUC, true positive rates at low false positive rates, and how sure they are."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .intervals import bootstrap, clopper_pearson, percentiles
from .roc import area, null_error, rate_at, roc

ALPHAS = (0.001, 0.01, 0.1)


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

    def evaluate(self, scores: np.ndarray) -> dict[str, Any]:
        """Return the figures of an attack's scores, (m + n,), as JSON can write them.

        - `auc`, `auc_interval` (bootstrap), `null_error` (standard error of an AUC that knows nothing);
        - `leaks`: whether .5 lies outside of the interval, on either side: a score that orders backwards tells
          members apart as well, read the other way;
        - `tpr`: for each false positive rate asked for, the largest true positive rate with at most that many false
          positives, the counts, `interval` (bootstrap, with the threshold chosen anew) and `exact` (Clopper-Pearson
          of the count), `fpr_exact` (of the false positives), and `supported`: False where there are fewer than
          1 / alpha non-members, so that the rate cannot be told from 0.
        """
        m, n = self.counts
        false, true = roc(scores, self.members)
        drawn = bootstrap(scores, self.members, self.clusters, self.alphas, self.rounds, self.seed)
        interval = percentiles(drawn["auc"], self.level)
        rates = {}
        for alpha in self.alphas:
            tpr, fpr = (float(rate[0]) for rate in rate_at(false, true, alpha))
            hits, errors = round(tpr * m), round(fpr * n)
            rates[f"{alpha:g}"] = {
                "tpr": tpr,
                "true_positives": hits,
                "false_positives": errors,
                "interval": percentiles(drawn[alpha], self.level),
                "exact": clopper_pearson(hits, m, self.level),
                "fpr_exact": clopper_pearson(errors, n, self.level),
                "supported": alpha * n >= 1 - 1e-9,
            }
        return {
            "auc": float(area(false, true)[0]),
            "auc_interval": interval,
            "null_error": null_error(m, n),
            "leaks": not interval[0] <= 0.5 <= interval[1],
            "tpr": rates,
        }

    def difference(self, scores: np.ndarray, others: np.ndarray) -> tuple[float, tuple[float, float]]:
        """Return by how much the AUC of scores is above that of others, and its interval, on the same resamples."""
        drawn = [
            bootstrap(s, self.members, self.clusters, (), self.rounds, self.seed)["auc"] for s in (scores, others)
        ]
        point = [float(area(*roc(s, self.members))[0]) for s in (scores, others)]
        return point[0] - point[1], percentiles(drawn[0] - drawn[1], self.level)
