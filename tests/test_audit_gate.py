"""The blind gate: silent on clean data, and not on members that differ; its p values against slow computations."""

import itertools
import zlib

import numpy as np
import pytest
from scipy.stats import fisher_exact, norm, rankdata
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge

from hf_gradkit.audit.evaluation import BlindRecord, Trial, auc, gate
from hf_gradkit.audit.evaluation.gate import exchange_p
from hf_gradkit.audit.evaluation.words import classified_words, telling_word
from hf_gradkit.data.synthetic import instruction_rows
from hf_gradkit.data.synthetic_secrets import secret_rows


def texts_of(kind: str, rows: int, seed: int) -> list[str]:
    if kind == "records":
        return [row["text"] for row in secret_rows(rows, seed, purchases=1)]
    return [f"{row['prompt']} {row['completion']}" for row in instruction_rows(rows, seed=seed)]


def blind(seed: int, shift: str | None = None, kind: str = "instructions", rows: int = 300) -> dict:
    """Return the gate's answer for texts that were split at random, or of which the members differ."""
    texts = texts_of(kind, rows, seed)
    documents = np.unique(texts, return_inverse=True)[1]  # as in an audit, copies are one document
    rng = np.random.default_rng(seed)
    members = (rng.permutation(documents.max() + 1) < (documents.max() + 1) // 2)[documents]
    losses = rng.normal(2, 0.3, rows)
    special = np.ones(rows)
    if shift == "one_word":  # two letters, in a fifth of them
        texts = [f"{text} ok" if member and rng.random() < 0.2 else text for text, member in zip(texts, members)]  # noqa: B905
    elif shift == "words":  # written down by another person: a bit of everything
        for here, there in (
            ("was born", "is from"),
            ("Bought", "Got"),
            ("works as", "is"),
            ("The account", "Account"),
        ):
            texts = [
                text.replace(here, there) if rng.random() < (0.45 if member else 0.25) else text
                for text, member in zip(texts, members, strict=True)
            ]
    elif shift == "length":
        texts = [f"{text} {text[:3]}" if member else text for text, member in zip(texts, members, strict=True)]
    elif shift == "special_tokens":
        special += members & (rng.random(rows) < 0.2)
    elif shift == "base_loss":
        losses[members] -= 0.2  # two thirds of a standard deviation
    lengths = np.array([len(text) for text in texts])
    sizes = np.array([len(zlib.compress(text.encode())) for text in texts])
    return gate(BlindRecord(texts, lengths, special, sizes, losses), Trial(members, documents, rounds=50, seed=seed))


@pytest.mark.parametrize("shift", ["words", "one_word", "length", "special_tokens", "base_loss"])
def test_the_gate_fires_on_a_planted_shift(shift):
    found = blind(0, shift, "records")
    assert found["confounded"]
    assert found["attacks"][shift]["fires"]
    assert found["attacks"][shift]["auc"] < 0.85  # none of them is plain to see


@pytest.mark.parametrize("kind", ["records", "instructions"])
def test_the_gate_does_not_fire_on_20_clean_data_sets(kind):
    """Its level is one in a thousand; at one in twenty, some are noted, four or more of 20 in 1.6 % of cases."""
    found = [blind(seed, kind=kind) for seed in range(20)]
    assert not any(of["confounded"] for of in found)
    assert sum(of["noted"] for of in found) <= 3


def test_p_values_say_how_rare_they_are():
    """Half of the texts are three texts: cross-fitted scores depend on each other, and their p values must not."""
    found = {"words": [], "one_word": [], "rank": []}
    for seed in range(60):
        texts = texts_of("instructions", 100, seed)
        members = np.random.default_rng(seed).permutation(100) < 50
        rows = np.arange(100)
        found["words"].append(classified_words(texts, members, rows, rows, seed)[2])
        found["one_word"].append(telling_word(texts, members, rows)[1])
        found["rank"].append(exchange_p(np.array([len(text) for text in texts]), members, rows))
    for name, values in found.items():
        for level in (0.1, 0.3):
            most = 60 * level + 3 * np.sqrt(60 * level * (1 - level))
            assert sum(p <= level for p in values) <= most, (name, level)
    assert sum(p <= 0.5 for p in found["words"]) >= 18  # and they do vary


def test_exchanged_documents_have_the_mean_and_the_variance_that_is_said():
    """Against all 252 ways to make five of ten documents members, some of them of three examples."""
    rng = np.random.default_rng(0)
    units = np.repeat(np.arange(10), [1, 3, 1, 1, 2, 1, 1, 3, 1, 1])
    scores = rng.integers(0, 6, len(units)).astype(float)
    draws = [np.isin(units, chosen) for chosen in itertools.combinations(range(10), 5)]
    ranks = rankdata(scores)
    sums = np.array([ranks[drawn].sum() - drawn.sum() * (len(units) + 1) / 2 for drawn in draws])
    assert sums.mean() == pytest.approx(0)
    for drawn, value in zip(draws[::40], sums[::40], strict=True):
        m, n = drawn.sum(), (~drawn).sum()
        assert value == pytest.approx(m * n * (auc(scores, drawn) - 0.5))
        assert exchange_p(scores, drawn, units) == pytest.approx(2 * norm.sf(abs(value) / sums.std()))
    assert exchange_p(np.ones(len(units)), draws[0], units) == 1.0


def test_classified_words_are_those_of_a_plain_ridge():
    texts = texts_of("records", 60, 0)
    members, documents = np.random.default_rng(0).permutation(60) < 25, np.arange(60) // 2
    kept, scores, p = classified_words(texts, members, documents, np.arange(60), seed=3)
    assert kept.tolist() == list(range(60))
    features = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\S+").fit_transform(texts)
    rng = np.random.default_rng(3)
    rng.permutation(60)  # the draw of the texts that are looked at
    folds = (rng.permutation(30) % 5)[documents]
    for fold in range(5):
        inside = folds == fold
        assert len(np.unique(documents[inside])) == inside.sum() / 2
        model = Ridge(alpha=1.0, solver="cholesky").fit(features[~inside].toarray(), members[~inside].astype(float))
        expected = rankdata(model.predict(features[inside].toarray()).round(9))
        assert scores[inside] == pytest.approx((expected - 0.5) / inside.sum())
    assert 0 < p <= 1


def test_the_telling_word_is_that_of_fisher():
    texts = ["a b", "a c", "a b", "a c d", "b c", "c d", "c", "c b", "c a", "d"]
    members = np.arange(10) < 4
    words = "abcd"
    tails = {}
    for word in words:
        there = np.array([word in text.split() for text in texts])
        table = [
            [(there & members).sum(), (there & ~members).sum()],
            [(~there & members).sum(), (~there & ~members).sum()],
        ]
        tails[word] = min(fisher_exact(table, side)[1] for side in ("less", "greater"))
    there, p = telling_word(texts, members, np.arange(10))
    assert min(tails, key=tails.get) == "a"
    assert there.tolist() == [1, 1, 1, 1, 0, 0, 0, 0, 1, 0]
    assert p == pytest.approx(min(1, 2 * 4 * tails["a"]))
    absent, same = telling_word(texts, ~members, np.arange(10))  # a word that members lack tells as much
    assert (absent == 1 - there).all()
    assert same == pytest.approx(p)
    assert telling_word(["", " "] * 5, members, np.arange(10))[1] == 1.0


def test_documents_are_kept_together_when_words_are_cross_fitted():
    """Each document has a word of its own on both of its rows: seen in training, it would give them away."""
    rng = np.random.default_rng(0)
    documents = np.repeat(np.arange(120), 2)
    members = np.repeat(rng.permutation(120) < 60, 2)
    texts = [f"word{i} common text" for i in documents]
    ones = np.ones(240)
    record = BlindRecord(texts, ones, ones, ones)
    apart = gate(record, Trial(members, documents, rounds=100))
    leaking = gate(record, Trial(members, np.arange(240), rounds=100))
    assert not apart["confounded"]
    assert leaking["attacks"]["words"]["auc"] > 0.8
    assert leaking["attacks"]["words"]["fires"]


def test_more_texts_than_the_classifier_looks_at(monkeypatch):
    monkeypatch.setattr("hf_gradkit.audit.evaluation.words.MOST", 80)
    found = blind(0, "one_word", "records")
    assert found["attacks"]["one_word"]["fires"]  # it looks at all of them
    assert 0.2 < found["attacks"]["words"]["auc"] < 0.8
    texts, rows = texts_of("records", 90, 0), np.arange(90)
    kept, scores, _ = classified_words(texts, rows < 40, rows // 3, rows // 3, seed=0)
    assert len(kept) == len(scores) == 78  # whole documents
    assert (np.bincount(kept // 3)[np.unique(kept // 3)] == 3).all()
