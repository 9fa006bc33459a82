"""Tests of whether members and non-members use other words. Neither looks at a model; both are exact.

Letters: `N` examples, `u` units (an example, or a document's examples on one side), `B` relabellings, `w` words.
"""

import numpy as np

from .intervals import require_sklearn

FOLDS = 5
MOST = 4000  # examples that the classifier looks at: its time grows with their cube
RIDGE = 1.0
RELABELLINGS = 9999
BATCH = 1000
ENOUGH = 20  # relabellings that do as well, after which a p value needs no more digits
PATTERN = r"(?u)\S+"


def classified_words(
    texts: list[str], members: np.ndarray, clusters: np.ndarray, units: np.ndarray, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, float]:
    """Tell members' texts from the others' by TF-IDF of words and pairs of words, and a ridge classifier.

    No text is scored by a classifier that saw it or another one of its document. The p value is the share of random
    relabellings of the units under which the same classifier does as well: it is exact, whatever the texts repeat,
    where the error of an AUC is not, since cross-fitted scores depend on each other. A ridge classifier, and no
    logistic regression, because its scores are linear in the labels: thousands of relabellings are one product.

    Args:
        texts: N strings.
        members: which are members'. (N,) bool
        clusters: document of each. (N,) int64
        units: unit of each, numbered from 0. (N,) int64
        seed: of folds, relabellings, and which texts are looked at where there are more than `MOST`.

    Returns:
        The texts that were looked at, (k,) int64, their scores, (k,), ranked within each fold, and the p value.
    """
    rng = np.random.default_rng(seed)
    kept = _some(units, rng)
    members, clusters = members[kept], clusters[kept]
    numbered = np.unique(clusters, return_inverse=True)[1]
    folds = (rng.permutation(numbered.max() + 1) % FOLDS)[numbered]
    smoother = _smoother([texts[i] for i in kept], folds)
    scores = _fold_ranks(smoother @ members[:, None], folds)[:, 0]
    found = scores[members].sum()
    unit = np.unique(units[kept], return_inverse=True)[1]
    sides = np.zeros(unit.max() + 1, dtype=bool)
    sides[unit] = members
    as_good = drawn = 0
    while drawn < RELABELLINGS and as_good < ENOUGH:
        labels = rng.permuted(np.tile(sides, (BATCH, 1)), axis=1)[:, unit].T  # (k, B)
        others = (_fold_ranks(smoother @ labels, folds) * labels).sum(0)
        # Sides of a document have sizes of their own, so that sums are compared as means are: less what chance gives.
        as_good += int((others - labels.sum(0) / 2 >= found - members.sum() / 2 - 1e-9).sum())
        drawn += BATCH
    return kept, scores, (as_good + 1) / (drawn + 1)


def telling_word(texts: list[str], members: np.ndarray, units: np.ndarray) -> tuple[np.ndarray, float]:
    """Return which texts have the word that tells best, and the p value of Fisher's exact test.

    A single word is easily lost among the others of a classifier: "ok" at the end of every fifth text is one. The p
    value is two-sided and corrected for the number of words; a word counts once a unit.

    Args:
        texts, members, units: as for `classified_words`.

    Returns:
        Whether the word is there, or is not where the non-members have it, (N,) float64; and the p value.
    """
    require_sklearn()
    from scipy.stats import hypergeom
    from sklearn.feature_extraction.text import CountVectorizer

    try:
        counts = CountVectorizer(token_pattern=PATTERN, binary=True).fit_transform(texts).tocsr()  # (N, w)
    except ValueError:  # texts without a word
        return np.zeros(len(texts)), 1.0
    sides = np.zeros(units.max() + 1, dtype=bool)
    sides[units] = members
    of_unit = _indicator(units) @ counts
    of_unit.data[:] = 1
    everywhere, inside = (np.asarray(part.sum(0)).ravel() for part in (of_unit, of_unit[np.flatnonzero(sides)]))
    seen = np.flatnonzero((everywhere > 1) & (everywhere < len(sides)))
    if not len(seen):
        return np.zeros(len(texts)), 1.0
    chance = hypergeom(len(sides), everywhere[seen], int(sides.sum()))
    tails = np.minimum(chance.sf(inside[seen] - 1), chance.cdf(inside[seen]))
    best = int(tails.argmin())
    there = counts[:, seen[best]].toarray().ravel().astype(np.float64)
    if inside[seen[best]] * len(sides) < everywhere[seen[best]] * sides.sum():
        there = 1 - there
    return there, float(min(1.0, 2 * len(seen) * tails[best]))


def _some(units: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return at most about `MOST` examples, whole units, drawn at random. (k,) int64"""
    sizes = np.bincount(units)
    order = rng.permutation(len(sizes))
    chosen = np.zeros(len(sizes), dtype=bool)
    chosen[order[np.cumsum(sizes[order]) <= MOST]] = True
    return np.flatnonzero(chosen[units])


def _smoother(texts: list[str], folds: np.ndarray) -> np.ndarray:
    """Return the matrix that makes each text's score out of the labels of the texts in other folds. (k, k)"""
    require_sklearn()
    from scipy.linalg import solve
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), max_features=20_000, sublinear_tf=True, token_pattern=PATTERN)
    try:
        found = vectorizer.fit_transform(texts)
    except ValueError:  # texts without a word
        return np.zeros((len(texts), len(texts)))
    products = (found @ found.T).toarray()
    smoother = np.zeros_like(products)
    for fold in np.unique(folds):
        test, train = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        if not len(train):
            continue
        inner = products[np.ix_(train, train)]
        mean = inner.mean(0)  # the intercept: products of texts less their mean over the texts that are learnt from
        inner = inner - mean - mean[:, None] + mean.mean()
        across = products[np.ix_(test, train)]
        across = across - mean - across.mean(1, keepdims=True) + mean.mean()
        weights = solve(inner + RIDGE * np.eye(len(train)), across.T, assume_a="pos").T
        smoother[np.ix_(test, train)] = weights - weights.mean(1, keepdims=True)  # of labels less their mean
    return smoother


def _fold_ranks(scores: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Return the share of a fold's scores that each one reaches, ties sharing theirs, mean one half. (k, B) twice"""
    from scipy.stats import rankdata

    ranks = np.empty(scores.shape)
    for fold in np.unique(folds):
        inside = folds == fold
        ranks[inside] = (rankdata(scores[inside].round(9), axis=0) - 0.5) / inside.sum()
    return ranks


def _indicator(units: np.ndarray):
    """Return which examples belong to a unit. (u, N) sparse"""
    from scipy.sparse import csr_matrix

    return csr_matrix((np.ones(len(units)), (units, np.arange(len(units)))))
