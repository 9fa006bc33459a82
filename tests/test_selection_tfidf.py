"""The offline embedder, hashed TF-IDF, against a dictionary of words without hashing or projection."""

import math

import numpy as np
import pytest
from datasets import Dataset

from hf_gradkit.selection.tfidf import HashedTfidf


def texts(*prompts: str) -> Dataset:
    return Dataset.from_dict({"prompt": prompts, "chosen": ["a"] * len(prompts), "rejected": ["b"] * len(prompts)})


def test_tfidf_is_what_it_says():
    """The oracle: a dictionary of words, weights by their formula, cosines without hashing or projection."""
    prompts = ["the red house", "The RED house!", "a red dog", "one two three four", "the the the house"]
    vectors = HashedTfidf(dimension=1024)(texts(*prompts).to_list())
    bags = [prompt.lower().replace("!", "").split() for prompt in prompts]
    words = sorted({word for bag in bags for word in bag})
    unique = bags  # each prompt is another text, though two have the same words
    idf = {word: 1 + math.log((1 + len(unique)) / (1 + sum(word in bag for bag in unique))) for word in words}
    exact = np.array([[bag.count(w) and (1 + math.log(bag.count(w))) * idf[w] for w in words] for bag in bags])
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    assert vectors @ vectors.T == pytest.approx(exact @ exact.T, abs=0.1)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(5), abs=1e-6)
    assert (vectors[0] == vectors[1]).all()


def test_tfidf_of_scripts_without_spaces_and_of_nothing():
    vectors = HashedTfidf()(texts("今日は天気がいい", "今日は天気が悪い", "full of words", "", "?!").to_list())
    assert vectors[0] @ vectors[1] > 0.5
    assert abs(vectors[0] @ vectors[2]) < 0.3
    assert not vectors[3:].any()


def test_tfidf_depends_on_its_seed_alone():
    rows = texts("the red house", "a dog").to_list()
    assert (HashedTfidf(seed=1)(rows) == HashedTfidf(seed=1)(rows)).all()
    assert (HashedTfidf(seed=1)(rows) != HashedTfidf(seed=2)(rows)).any()
