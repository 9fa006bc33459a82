"""Supervised attacks: a classifier learns from some examples' gradients what members' gradients look like."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..evaluation.gate import folds, ranks
from ..evaluation.intervals import require_sklearn

MODELS = ("logistic", "mlp")


@dataclass(frozen=True)
class FeatureRecord:
    """Features of all examples, and what a supervised attacker knows of the others.

    Attributes:
        features: logarithms of the norms of each parameter's gradient. (N, d)
        members: which examples are members. (N,) bool
        documents: the document of each example. (N,) int64
        seed: of the folds and the classifier.
    """

    features: np.ndarray
    members: np.ndarray
    documents: np.ndarray
    seed: int


@dataclass(frozen=True)
class Supervised:
    """A classifier on gradient features (arXiv 2402.17012), cross-fitted.

    No example is scored by a classifier that saw it or its document. Scores are ranks within the fold.

    Args:
        model: "logistic" for logistic regression, "mlp" for the paper's small network (250-100-10-1).
    """

    record_type: ClassVar[type] = FeatureRecord
    needs_reference: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ()
    model: str = "logistic"

    def __post_init__(self):
        if self.model not in MODELS:
            raise ValueError(f"`model` of Supervised must be 'logistic' or 'mlp', but it is {self.model!r}.")

    def __call__(self, record: FeatureRecord) -> np.ndarray:
        """Return the score of each example, higher for a more likely member. (N,) float64"""
        require_sklearn()
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        scores = np.zeros(len(record.members))
        for train, test in folds(record.members, record.documents, record.seed):
            classifier = make_pipeline(StandardScaler(), self._classifier(record.seed))
            classifier.fit(record.features[train], record.members[train])
            scores[test] = ranks(classifier.predict_proba(record.features[test])[:, 1])
        return scores

    def _classifier(self, seed: int):
        from sklearn.linear_model import LogisticRegression
        from sklearn.neural_network import MLPClassifier

        if self.model == "logistic":
            return LogisticRegression(class_weight="balanced", max_iter=1000)
        return MLPClassifier(hidden_layer_sizes=(250, 100, 10), max_iter=500, random_state=seed)
