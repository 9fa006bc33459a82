"""FiFA: the score by hand, its options, what comes back, and what is refused."""

import json
import logging

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

from hf_gradkit.selection import FiFA
from hf_gradkit.selection.fifa import NEGATIVE
from hf_gradkit.selection.neighbours import neighbour_distances
from hf_gradkit.selection.zscore import robust_z
from pairs import make_pairs

N = 40


def points_of(rows) -> np.ndarray:
    """Embeddings that depend on the prompt alone."""
    return np.stack([np.random.default_rng(sum(map(ord, row["prompt"]))).standard_normal(4) for row in rows])


@pytest.fixture(scope="module")
def dataset():
    """Pairs, two with each prompt, with margins and a quality."""
    rng = np.random.default_rng(0)
    rows = make_pairs(N, "prompt")
    extra = [{"margin": rng.normal(1, 2), "grade": float(rng.integers(1, 6)), "uid": f"id-{i}"} for i in range(N)]
    return Dataset.from_list([row | more for row, more in zip(rows, extra, strict=True)])


@pytest.fixture
def fifa(tmp_path):
    """Return FiFA on the columns of the data, with changes."""

    def make(**changes):
        options = {
            "margin": {"by": "columns", "chosen": "margin"},
            "quality": {"by": "column", "column": "grade"},
            "embedder": points_of,
            "fraction": 0.25,
            "cache_folder": tmp_path / "cache",
        }
        return FiFA(**{**options, **changes})

    return make


def by_hand(dataset, k=5, weights=(1.0, 0.5, 0.5)) -> np.ndarray:
    """The score of the specification, from the columns. (n,)"""
    prompts = list(dict.fromkeys(dataset["prompt"]))
    points = points_of([{"prompt": prompt} for prompt in prompts])
    eps = [sorted(np.linalg.norm(points - point, axis=1))[k] for point in points]  # the first one is its own
    d = np.log1p([eps[prompts.index(prompt)] for prompt in dataset["prompt"]])
    parts = (np.array(dataset["margin"]), np.array(dataset["grade"]), d)
    return sum(weight * robust_z(part) for weight, part in zip(weights, parts, strict=True))


# ---- the score ------------------------------------------------------------------------------------------------


def test_the_score_by_hand(dataset, fifa):
    result = fifa().select(dataset)
    expected = by_hand(dataset)
    assert result.scores["score"] == pytest.approx(expected.tolist(), abs=1e-6)
    assert result.kept.tolist() == sorted(np.argsort(-expected)[:10].tolist())


def test_weights_and_k(dataset, fifa):
    result = fifa(margin_weight=0.3, quality_weight=2, diversity_weight=1.5, k=2).select(dataset)
    assert result.scores["score"] == pytest.approx(by_hand(dataset, 2, (0.3, 2, 1.5)).tolist(), abs=1e-6)


def test_a_component_without_weight_is_not_computed(dataset, fifa):
    def never(rows):
        raise AssertionError

    result = fifa(quality=never, quality_weight=0, embedder=never, diversity_weight=0).select(dataset)
    assert result.scores["score"] == pytest.approx(robust_z(dataset["margin"]).tolist())
    assert "quality" not in result.scores.column_names
    only = fifa(quality=None, embedder=None).select(dataset)
    assert (only.kept == result.kept).all()


def test_greedy_starts_as_modular_does_and_spreads_further(dataset, fifa):
    modular, greedy = (
        fifa(diversity_weight=3).select(dataset),
        fifa(diversity_weight=3, method="greedy").select(dataset),
    )
    assert modular.scores["rank"].index(0) == greedy.scores["rank"].index(0)
    assert len(set(greedy.dataset["prompt"])) >= len(set(modular.dataset["prompt"]))
    kept = points_of([{"prompt": prompt} for prompt in sorted(set(greedy.dataset["prompt"]))])
    plain = points_of([{"prompt": prompt} for prompt in sorted(set(modular.dataset["prompt"]))])
    assert neighbour_distances(kept, 1).min() > neighbour_distances(plain, 1).min()
    taken = [score for score in greedy.scores["score_when_taken"] if score is not None and not np.isnan(score)]
    assert len(taken) == 10


# ---- options --------------------------------------------------------------------------------------------------


def test_negative_margins_are_dropped(dataset, fifa):
    result = fifa(drop_negative_margins=True, fraction=0.5).select(dataset)
    margins = np.array(dataset["margin"])
    assert (margins[result.kept] >= 0).all()
    assert [name == NEGATIVE for name in result.scores["ruled_out"]] == (margins < 0).tolist()
    assert result.report["ruled_out"] == {NEGATIVE: int((margins < 0).sum())}
    with pytest.raises(ValueError, match=r"40 rows are asked for, and only \d+ are left by the rules \('neg"):
        fifa(drop_negative_margins=True, fraction=1.0).select(dataset)


def test_small_margins(dataset, fifa):
    result = fifa(quality=None, embedder=None, margin_direction="small").select(dataset)
    assert result.kept.tolist() == sorted(np.argsort(dataset["margin"])[:10].tolist())


def test_capped_margins(dataset, fifa):
    result = fifa(quality=None, embedder=None, margin_cap=0.5).select(dataset)
    margins = np.array(dataset["margin"])
    capped = np.minimum(margins, np.median(margins))
    assert result.scores["score"] == pytest.approx(robust_z(capped).tolist())
    assert list(result.scores["margin"]) == margins.tolist()
    assert (margins[result.kept] >= np.median(margins)).all()


@pytest.mark.parametrize("method", ["modular", "greedy"])
def test_few_pairs_of_one_prompt(method, dataset, fifa):
    result = fifa(max_per_prompt=1, method=method, count=20, fraction=None).select(dataset)
    assert len(set(result.dataset["prompt"])) == 20
    with pytest.raises(ValueError, match="21 rows are asked for, and only 20 are left"):
        fifa(max_per_prompt=1, method=method, count=21, fraction=None).select(dataset)


def test_a_constant_component_says_nothing(dataset, fifa, caplog):
    with caplog.at_level(logging.WARNING):
        result = fifa(quality=lambda rows: [0.1] * len(rows)).select(dataset)
    assert "`quality` is the same for all pairs" in caplog.text
    assert result.kept.tolist() == fifa(quality=None).select(dataset).kept.tolist()


# ---- what comes back ------------------------------------------------------------------------------------------


def test_the_data_has_its_own_format(dataset, fifa):
    result = fifa().select(dataset)
    assert result.dataset.features == dataset.features
    assert result.dataset["uid"] == [f"id-{i}" for i in result.kept]
    for kind in ("messages", "messages prompt", "plain"):
        pairs = Dataset.from_list(make_pairs(N, kind)).add_column("margin", dataset["margin"])
        result = fifa(quality=None, embedder="tfidf").select(pairs)
        assert result.dataset.features == pairs.features
        assert result.dataset[0] == pairs[int(result.kept[0])]


def test_one_row_of_scores_for_each_row(dataset, fifa):
    result = fifa().select(dataset)
    scores = result.scores
    assert scores["row"] == list(range(N))
    names = ["kept", "rank", "ruled_out", "margin", "margin_z", "quality", "quality_z", "neighbour_distance"]
    assert {*names, "diversity", "diversity_z", "score", "prompt_number"} <= set(scores.column_names)
    assert np.flatnonzero(scores["kept"]).tolist() == result.kept.tolist()
    ranked = sorted((rank, score) for rank, score in zip(scores["rank"], scores["score"], strict=True) if rank >= 0)
    assert [rank for rank, _ in ranked] == list(range(10))
    assert [score for _, score in ranked] == sorted((score for _, score in ranked), reverse=True)


def test_the_report(dataset, fifa):
    report = fifa().select(dataset).report
    assert json.loads(json.dumps(report)) == report
    assert (report["by"], report["rows"], report["kept"]) == ("fifa", N, 10)
    margins = np.array(dataset["margin"])
    assert report["figures"]["margin"]["all"]["mean"] == pytest.approx(margins.mean())
    assert report["figures"]["margin"]["kept"]["mean"] > report["figures"]["margin"]["random"]["mean"]
    lengths = [len(row["chosen"]) - len(row["rejected"]) for row in dataset]
    assert report["margin_and_length"]["pearson"] == pytest.approx(np.corrcoef(margins, lengths)[0, 1])
    ranks = [np.argsort(np.argsort(values)) for values in (margins, np.array(lengths) + 1e-6 * np.arange(N))]
    assert report["margin_and_length"]["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=0.05)
    assert set(report["entropy"]) == {"all", "kept", "random"}
    assert 0 <= report["overlap_with_random"] <= 1
    assert report["neighbours"]["search"] == "exact"
    assert set(report["seconds"]) == {"margin", "quality", "embedder", "neighbours", "report"}
    assert [len(report["samples"][name]) for name in ("kept, first", "dropped, last")] == [3, 3]
    assert report["prompts"]["farthest"][0]["distance"] >= report["prompts"]["nearest"][0]["distance"]


def test_entropy_rises_where_diversity_is_all_that_counts(fifa):
    rng = np.random.default_rng(1)
    points = np.concatenate([0.01 * rng.standard_normal((150, 2)), 3 * rng.standard_normal((50, 2))])
    rows = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(200)]
    embedder = lambda rows: points[[int(row["prompt"][1:]) for row in rows]]  # noqa: E731
    report = fifa(margin=None, quality=None, embedder=embedder).select(Dataset.from_list(rows)).report
    assert report["entropy"]["kept"] > report["entropy"]["random"] + 2


def test_same_seed_same_selection(dataset, fifa, tmp_path):
    """Margins with many ties: which of the equal ones are kept is the seed's to say, and nothing else's."""
    ties = lambda rows: [float(len(row["chosen"]) > 50) for row in rows]  # noqa: E731
    one = fifa(margin=ties, quality=None, embedder=None).select(dataset)
    again = fifa(margin=ties, quality=None, embedder=None, cache_folder=tmp_path / "other").select(dataset)
    assert one.scores.to_dict() == again.scores.to_dict()
    other = fifa(margin=ties, quality=None, embedder=None, seed=1).select(dataset)
    assert (other.kept != one.kept).any()


def test_components_are_not_scored_twice(dataset, fifa):
    calls = []

    def margin(rows):
        calls.append(len(rows))
        return [row["margin"] for row in rows]

    first = fifa(margin=margin).select(dataset)
    seen = sum(calls)
    assert seen == N
    # `calls` is part of the function, so that another list would be another function
    calls.clear()
    again = fifa(margin=margin, margin_weight=2.0).select(dataset)
    assert calls == []
    assert list(again.scores["margin"]) == list(first.scores["margin"])


# ---- what is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fraction": 0}, "`fraction` must be above 0 and at most 1, but it is 0."),
        ({"fraction": 1.5}, "`fraction` must be above 0 and at most 1, but it is 1.5."),
        ({"fraction": None}, "Set `fraction` or `count`, one of them"),
        ({"count": 3}, "Set `fraction` or `count`, one of them"),
        ({"method": "best"}, "`method` is 'best'. Known values: 'modular', 'greedy'."),
        ({"margin_direction": "up"}, "`margin_direction` is 'up'."),
        ({"neighbours": "fais"}, "`neighbours` is 'fais'. Did you mean 'faiss'?"),
        ({"k": 0}, "`k` must be an integer of at least 1, but it is 0."),
        ({"margin_weight": -1}, "`margin_weight` must be a finite number of at least 0, but it is -1."),
        ({"margin_cap": 2}, "`margin_cap` is a quantile, between 0 and 1, but it is 2."),
        ({"max_per_prompt": 0}, "`max_per_prompt` must be an integer of at least 1, but it is 0."),
        ({"margin": None, "quality": None, "embedder": None}, "are all None or of weight 0"),
        ({"margin": None, "drop_negative_margins": True}, "there is no `margin`"),
        ({"embedder": None, "method": "greedy"}, "there is no `embedder`"),
        ({"seed": -1}, "`seed` must be an integer of at least 0, but it is -1."),
        ({"batch_size": 0}, "`batch_size` must be an integer of at least 1, but it is 0."),
        ({"margin": "reward"}, "There is no margin component 'reward'."),
    ],
)
def test_options_that_cannot_be(changes, message, fifa):
    with pytest.raises(ValueError, match=message):
        fifa(**changes)


def test_more_rows_than_there_are(dataset, fifa):
    with pytest.raises(ValueError, match=r"`count` asks for 41 rows, but the data has 40\."):
        fifa(fraction=None, count=41).select(dataset)


def test_data_that_cannot_be_selected_from(dataset, fifa):
    with pytest.raises(ValueError, match=r"The data is a DatasetDict.*Give one of its splits: 'train'\."):
        fifa().select(DatasetDict(train=dataset))
    with pytest.raises(ValueError, match=r"The data is a list.*`Dataset\.from_list`"):
        fifa().select(dataset.to_list())
    with pytest.raises(ValueError, match="The data is a IterableDataset, and rows are selected from a whole"):
        fifa().select(dataset.to_iterable_dataset())
    with pytest.raises(ValueError, match="The data has no rows"):
        fifa().select(dataset.select([]))
    with pytest.raises(ValueError, match=r"has no 'rejected'.* Its columns: 'chosen', 'prompt'"):
        fifa().select(dataset.select_columns(["chosen", "prompt"]))
    with pytest.raises(ValueError, match=r"`margin` reads the column 'margin', but the data has no such column\."):
        fifa().select(dataset.remove_columns("margin"))


def test_k_of_as_many_as_there_are_prompts(dataset, fifa):
    with pytest.raises(ValueError, match="`k` is 20, but there are only 20 unique prompts"):
        fifa(k=20).select(dataset)
    assert len(fifa(k=19).select(dataset).dataset) == 10


def constant_ones(rows):
    return [1.0] * len(rows)


def test_all_components_constant(dataset, fifa):
    with pytest.raises(ValueError, match=r"Every component is constant \(margin, quality\)"):
        fifa(margin=lambda rows: [1.0] * len(rows), quality=lambda rows: [0.1] * len(rows), embedder=None).select(
            dataset
        )


def test_scores_that_are_not_numbers(dataset, fifa):
    with pytest.raises(FloatingPointError, match=r"`margin` of rows \[3\] of the data is not a finite number"):
        fifa(margin=lambda rows: [np.nan if row["uid"] == "id-3" else 1.0 for row in rows]).select(dataset)
    with pytest.raises(ValueError, match=r"`margin` \(.*\) returned values of shape \(39,\) for 40 rows"):
        fifa(margin=lambda rows: [1.0] * (len(rows) - 1)).select(dataset)
