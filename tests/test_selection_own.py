"""Selectors of the user's own: what they may return, and what is said of the rest."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from hf_gradkit.selection import Assessment, FiFA, Random, Selector
from pairs import make_pairs, pair_dataset

N = 12


@dataclass(frozen=True, kw_only=True)
class Returns(Selector):
    """Returns what it is told to."""

    columns: Any = None
    ruled_out: Any = None
    further: Any = None

    def assess(self, dataset, work):
        return Assessment(dict(self.columns), dict(self.ruled_out or {}))

    def choose(self, found, size):
        return super().choose(found, size)[0], dict(self.further or {})


@dataclass(frozen=True, kw_only=True)
class ReturnsNothing(Selector):
    def assess(self, dataset, work):
        return None


SCORE = np.arange(N, dtype=float)


@pytest.mark.parametrize(
    "score", [SCORE, list(range(N)), np.arange(N), SCORE.astype(np.float32), SCORE > 8, 1e-8 * SCORE]
)
def test_scores_of_every_kind(score):
    result = Returns(count=3, columns={"score": score}).select(pair_dataset(N, "prompt"))
    assert result.kept.tolist() == [9, 10, 11]
    assert result.report["figures"]["score"]["all"]["mean"] == pytest.approx(np.mean(score))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": {"points": SCORE}}, "`assess` of 'Returns' returned no column 'score'.*Its columns: 'points'"),
        ({"columns": {"score": SCORE[:5]}}, r"'Returns' returned 'score' of shape \(5,\) for 12 rows"),
        ({"columns": {"score": ["a"] * N}}, "The `score` of 'Returns' is of type <U1. It must be one number a row"),
        (
            {"columns": {"score": SCORE, "kept": SCORE}},
            "'Returns' returned a column 'kept', which the table of scores",
        ),
        ({"columns": {"score": SCORE, "rank": SCORE}}, "returned a column 'rank'"),
        ({"columns": {"score": SCORE, "chosen_length": SCORE}}, "returned a column 'chosen_length'"),
        ({"columns": {"score": SCORE}, "further": {"score": SCORE}}, "returned a column 'score'"),
        ({"columns": {"score": SCORE}, "further": {"draws": SCORE[:3]}}, r"'draws' of shape \(3,\) for 12 rows"),
        ({"columns": {"score": SCORE}, "ruled_out": {"short": [True]}}, r"'short' of shape \(1,\) for 12 rows"),
    ],
)
def test_what_a_selector_must_not_return(options, message):
    with pytest.raises(ValueError, match=message):
        Returns(count=3, **options).select(pair_dataset(N, "prompt"))


def test_a_selector_that_returns_nothing():
    with pytest.raises(
        ValueError, match=r"`assess` of 'ReturnsNothing' returned a NoneType\. It must return an `Asses"
    ):
        ReturnsNothing(count=3).select(pair_dataset(N, "prompt"))


def test_numbers_of_numpy():
    dataset = pair_dataset(N, "prompt")
    for options in ({"count": np.int64(3)}, {"fraction": np.float32(0.25)}, {"count": 3, "seed": np.int32(0)}):
        result = Random(**options).select(dataset)
        assert len(result.kept) == 3
        assert json.loads(json.dumps(result.report))["kept"] == 3
    with pytest.raises(ValueError, match="`count` must be an integer of at least 1, but it is 0"):
        Random(count=np.int64(0))


def test_one_prompt_has_no_neighbour(tmp_path):
    rows = [row | {"prompt": "the same", "reward_margin": float(i)} for i, row in enumerate(make_pairs(6, "prompt"))]
    with pytest.raises(ValueError, match=r"the number of unique prompts is 1.*Leave the embedder out"):
        FiFA(count=2, k=1, cache_folder=tmp_path).select(Dataset.from_list(rows))
