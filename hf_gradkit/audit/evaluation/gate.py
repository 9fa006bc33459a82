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
from .words import classified_words, telling_word

FOLDS = 5
STAMPED, NOTED = 0.001, 0.05  # shares of clean audits that are stamped, and that are noted


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

    def scores(self) -> dict[str, np.ndarray]:
        """Return the blind attacks that are one figure of an example, by name. (m + n,) each"""
        found = {"length": self.tokens, "special_tokens": self.special_tokens, "zlib": self.zlib_bytes}
        if self.base_losses is not None:
            found["base_loss"] = -self.base_losses
        return {name: np.asarray(values, dtype=np.float64) for name, values in found.items()}


def gate(record: BlindRecord, trial: Trial) -> dict[str, Any]:
    """Return the AUC and the p value of every blind attack, and whether the audit is `confounded`.

    An audit is confounded if any attack's p value, times their number, is at most `STAMPED`: one clean audit in a
    thousand, so that the stamp means something. It is `noted` if one is at most `NOTED`, as one clean audit in twenty
    is. Under exchange of documents between the sides the p values are exact (`words`, `one_word`), or exact in mean
    and variance (the others). The AUCs' bootstrap intervals are Bonferroni-corrected and for the eye.
    """
    members, clusters = trial.members, trial.clusters
    units = np.unique(2 * clusters + members, return_inverse=True)[1]  # a document of both sides is one of each
    everything = np.arange(len(members))
    found = {
        name: (everything, values, exchange_p(values, members, units)) for name, values in record.scores().items()
    }
    found["words"] = classified_words(record.texts, members, clusters, units, trial.seed)
    found["one_word"] = (everything, *telling_word(record.texts, members, units))
    level = 1 - (1 - trial.level) / len(found)
    rounds = max(trial.rounds, int(20 / (1 - level)))  # some resamples must lie beyond the interval's ends
    attacks = {}
    for name, (kept, values, p) in found.items():
        drawn = bootstrap(values, members[kept], clusters[kept], (), rounds, trial.seed)["auc"]
        corrected = min(1.0, p * len(found))
        attacks[name] = {
            "auc": auc(values, members[kept]),
            "auc_interval": percentiles(drawn, level),
            "p": corrected,
            "fires": corrected <= STAMPED,
            "noted": corrected <= NOTED,
        }
    return {
        "level": level,
        "stamped_at": STAMPED,
        "noted_at": NOTED,
        "attacks": attacks,
        "confounded": any(of["fires"] for of in attacks.values()),
        "noted": any(of["noted"] for of in attacks.values()),
    }


def exchange_p(scores: np.ndarray, members: np.ndarray, units: np.ndarray) -> float:
    """Return the two-sided p value of an AUC, if which units are members were drawn anew at random.

    With mean rank 0, m n (AUC - 1/2) is the sum of the members' ranks, one term a unit. For K of D units drawn without
    replacement it has mean 0 and variance K (D - K) / (D (D - 1)) times the sum of the terms' squares; the tail is a
    normal's (Hoeffding's combinatorial limit theorem).

    Args:
        scores: a figure of each example. (m + n,)
        members: which are members. (m + n,) bool
        units: unit of each, numbered from 0. (m + n,) int64
    """
    require_sklearn()
    from scipy.stats import norm, rankdata

    terms = np.bincount(units, rankdata(scores) - (len(scores) + 1) / 2)
    sides = np.zeros(len(terms), dtype=bool)
    sides[units] = members
    drawn, count = int(sides.sum()), len(terms)
    variance = drawn * (count - drawn) / (count * (count - 1)) * np.square(terms).sum()
    return 1.0 if variance < 1e-9 else float(2 * norm.sf(abs(terms[sides].sum()) / np.sqrt(variance)))


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
