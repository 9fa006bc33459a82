"""Hashed TF-IDF with a random projection: embeddings that need no model and no download."""

import math
import re
import zlib
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from ..scoring.processes import on_main
from .components import Component
from .work import Work

BUCKETS = 1 << 16
# Words; of scripts that are written without spaces, each character.
_ALONE = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
WORD = re.compile(rf"[{_ALONE}]|[^\W{_ALONE}]+")


@dataclass(frozen=True)
class HashedTfidf(Component):
    """Embeds prompts by the words in them.

    Words are hashed into 65,536 buckets. A bucket weighs (1 + log tf) (1 + log((1 + U) / (1 + df))), the buckets of a
    prompt are projected to `dimension` numbers by random signs (Achlioptas, 2003), and the result has length 1, so
    that distances are at most 2. It knows words and not meanings: two prompts that ask the same in other words are far
    apart.

    Args:
        dimension: numbers of an embedding; the cosine of two prompts is off by about 1 / sqrt(dimension).
        seed: of the random signs.
    """

    dimension: int = 256
    seed: int = 0

    def __post_init__(self):
        if not isinstance(self.dimension, int) or isinstance(self.dimension, bool) or self.dimension < 1:
            raise ValueError(f"`dimension` must be an integer of at least 1, but it is {self.dimension!r}.")

    def of_dataset(self, dataset: Dataset, work: Work) -> np.ndarray:
        """Return the embedding of each row's prompt. (n, dimension) float32"""
        prompts = work.prompts(dataset)

        @contextmanager
        def make():
            texts = prompts.texts
            yield texts, TfidfScorer(on_main(lambda: inverse_frequencies(texts)), self.dimension, self.seed)

        identity = (self.dimension, self.seed, prompts.fingerprint)
        found = work.score("tfidf", identity, ("embedding",), len(prompts), make, 1024, prompts.rows, unit="prompt")
        return found["embedding"][prompts.of_row]


class TfidfScorer:
    """Embeds texts.

    Args:
        weights: inverse document frequency of each bucket. (BUCKETS,)
        dimension: of the embeddings.
        seed: of the random signs.
    """

    columns = ("embedding",)

    def __init__(self, weights: np.ndarray, dimension: int, seed: int):
        self.weights = weights
        signs = np.random.default_rng([seed, 2]).integers(0, 2, (BUCKETS, dimension), dtype=np.int8)
        self.signs = 2 * signs - 1

    def length(self, item: str) -> int:
        """Return the number of characters."""
        return len(item)

    def score(self, items: list[str]) -> dict[str, np.ndarray]:
        """Return the embedding of each text, of length 1, or zeros for a text without a word. (n, d) float32"""
        embeddings = np.zeros((len(items), self.signs.shape[1]))
        for vector, text in zip(embeddings, items, strict=True):
            counts = Counter(_buckets(text))
            if not counts:
                continue
            numbers = np.fromiter(sorted(counts), dtype=np.int64)
            tf = np.array([1 + math.log(counts[number]) for number in numbers.tolist()])
            vector[:] = (tf * self.weights[numbers]) @ self.signs[numbers]
            vector /= max(float(np.linalg.norm(vector)), 1e-12)
        return {"embedding": embeddings.astype(np.float32)}


def inverse_frequencies(texts: list[str]) -> np.ndarray:
    """Return 1 + log((1 + U) / (1 + df)) of each bucket, df being the number of texts that it is in. (BUCKETS,)"""
    found = np.zeros(BUCKETS)
    for text in texts:
        for number in set(_buckets(text)):
            found[number] += 1
    return 1 + np.log((1 + len(texts)) / (1 + found))


def _buckets(text: str) -> list[int]:
    return [zlib.crc32(word.encode()) % BUCKETS for word in WORD.findall(text.lower())]
