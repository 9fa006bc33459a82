"""The gate: members must not be told from non-members without looking at the target at all.

Where they can, by their length or their words, an attack's AUC says how the two sets differ, and not what the model
gives away: on published benchmarks such blind attacks beat the best attacks (arXiv 2406.16201).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .figures import Trial
from .intervals import bootstrap, percentiles, require_sklearn
from .roc import auc

FOLDS = 5


@dataclass(frozen=True)
class BlindRecord:
    """What is known of the examples without the target.

    Attributes:
        texts: their text. m + n strings
        tokens: number of tokens. (m + n,)
        special_tokens: number of special tokens among them. (m + n,)
        zlib_bytes: length of the text after zlib, bytes. (m + n,)
        base_losses: mean token loss under the model before fine-tuning, nats, or None without one. (m + n,)
    """

    texts: list[str]
    tokens: np.ndarray
    special_tokens: np.ndarray
    zlib_bytes: np.ndarray
    base_losses: np.ndarray | None = None

    def scores(self, trial: Trial) -> dict[str, np.ndarray]:
        """Return the scores of the blind attacks, by name. (m + n,) each"""
        found = {
            "length": self.tokens,
            "special_tokens": self.special_tokens,
            "zlib": self.zlib_bytes,
            "words": word_scores(self.texts, trial.members, trial.clusters, trial.seed),
        }
        if self.base_losses is not None:
            found["base_loss"] = -self.base_losses
        return {name: np.asarray(values, dtype=np.float64) for name, values in found.items()}


def gate(record: BlindRecord, trial: Trial) -> dict[str, Any]:
    """Return the AUC of every blind attack with its interval, and whether the audit is `confounded`.

    It is if .5 lies outside of any interval. The intervals are Bonferroni-corrected: five plain 95 % intervals would
    stamp 23 % of clean audits.
    """
    scores = record.scores(trial)
    level = 1 - (1 - trial.level) / len(scores)
    rounds = max(trial.rounds, int(20 / (1 - level)))  # some resamples must lie beyond the interval's ends
    attacks = {}
    for name, values in scores.items():
        drawn = bootstrap(values, trial.members, trial.clusters, (), rounds, trial.seed)["auc"]
        interval = percentiles(drawn, level)
        fires = not interval[0] - 1e-9 <= 0.5 <= interval[1] + 1e-9
        attacks[name] = {"auc": auc(values, trial.members), "auc_interval": interval, "fires": fires}
    return {"level": level, "attacks": attacks, "confounded": any(found["fires"] for found in attacks.values())}


def word_scores(texts: list[str], members: np.ndarray, clusters: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return how much each text reads like a member's, by TF-IDF and logistic regression. (m + n,)

    Cross-fitted: no text is scored by a classifier that saw it, or another one of its document. Scores of a fold are
    ranked within it, since different classifiers' scores are on scales of their own.
    """
    require_sklearn()
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    scores = np.zeros(len(texts))
    array = np.array(texts, dtype=object)
    for train, test in folds(members, clusters, seed):
        words = TfidfVectorizer(ngram_range=(1, 2), max_features=20_000, sublinear_tf=True, token_pattern=r"(?u)\S+")
        classifier = make_pipeline(words, LogisticRegression(class_weight="balanced", max_iter=1000))
        classifier.fit(array[train], members[train])
        scores[test] = ranks(classifier.decision_function(array[test]))
    return scores


def folds(members: np.ndarray, clusters: np.ndarray, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return training and test rows of each fold: shares of members alike, documents kept together."""
    require_sklearn()
    from sklearn.model_selection import StratifiedGroupKFold

    count = min(FOLDS, *(len(np.unique(clusters[members == side])) for side in (False, True)))
    if count < 2:
        raise ValueError(
            "There is only one document of members or of non-members, so nothing can be cross-fitted. Give more "
            "documents, or another `document_column`."
        )
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros(len(members)), members, clusters))


def ranks(values: np.ndarray) -> np.ndarray:
    """Return the share of the values that each one reaches, ties sharing theirs. (k,)"""
    require_sklearn()
    from scipy.stats import rankdata

    return rankdata(values) / len(values)
