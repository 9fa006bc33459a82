"""The report of a selection says and shows what was kept: figures by hand, samples, pictures, the random baseline."""

import dataclasses
import itertools
import json
import sys

import numpy as np
import pytest
from datasets import Dataset

from difficulty_helpers import sft_data
from hf_gradkit.reporting.selection import DRAWN, distributions, render, selection_blocks, sentences
from hf_gradkit.selection import FiFA, Length, Random, neighbours
from hf_gradkit.selection.nearest import find_distances
from hf_gradkit.selection.neighbours import neighbour_distances
from hf_gradkit.selection.registry import build_selector
from hf_gradkit.selection.summary import summarize
from hf_gradkit.selection.work import Work
from pairs import make_pairs

N, K = 40, 10
AXES = {
    "score": "score",
    "margin": "margin: chosen minus rejected",
    "quality": "quality of the prompt",
    "neighbour_distance": "distance to the k-th nearest other prompt",
    "chosen_length": "characters of the chosen answer",
}


@pytest.fixture(scope="module")
def dataset():
    """Pairs, two with each prompt; margins are in no order, and are not the score."""
    margins = np.random.default_rng(0).normal(1, 2, N).tolist()
    return Dataset.from_list([row | {"m": m} for row, m in zip(make_pairs(N, "prompt"), margins, strict=True)])


@pytest.fixture
def fifa(tmp_path):
    def make(**changes):
        options = {"margin": {"by": "columns", "chosen": "m"}, "quality": of_prompt, "count": K}
        return FiFA(**{**options, "cache_folder": tmp_path / "cache", **changes})

    return make


def of_prompt(rows):
    return [float(row["prompt"].count("a")) for row in rows]


def labels(figure) -> list[str]:
    return [axis.get_xlabel() for axis in figure.axes if axis.get_visible()]


def rows_in(scores: Dataset, column: str) -> set[int]:
    return set(np.flatnonzero(scores[column]).tolist())


# ---- pictures -------------------------------------------------------------------------------------------------


def test_every_component_has_a_histogram(dataset, fifa):
    result = fifa().select(dataset)
    drawn = {block.title: block.draw for block in selection_blocks(result.report, result.scores) if block.draw}
    assert list(drawn) == ["Before and after", "Margin and length"]
    assert labels(drawn["Before and after"]()) == list(AXES.values())


def test_answers_of_sft_data_have_a_histogram_of_their_lengths():
    rows = [{"prompt": f"p{i}", "completion": "a" * (i + 1)} for i in range(12)]
    result = Length(count=3).select(Dataset.from_list(rows))
    picture = selection_blocks(result.report, result.scores)[1].draw()
    assert "characters of the answer" in labels(picture)


def test_a_histogram_shows_the_share_of_all_of_those_kept_and_of_those_drawn():
    values = np.repeat([0.0, 10.0], [30, 10])
    kept, drawn = values > 5, np.arange(40) < 20
    (axis,) = distributions({"score": values}, {"all": slice(None), "kept": kept, "random": drawn}).axes
    heights = {patch.get_label(): np.unique(patch.get_xy()[:, 1]).tolist() for patch in axis.patches}
    assert heights["all rows"] == pytest.approx([0, 0.25, 0.75])
    assert heights["kept"] == pytest.approx([0, 1])
    assert heights["as many at random"] == pytest.approx([0, 1])
    first, last = (patch.get_xy()[:, 1] for patch in axis.patches[1:])
    assert first.argmax() > last.argmax()  # those kept lie on the right, those drawn on the left


def test_margins_are_drawn_against_lengths(dataset, fifa):
    result = fifa().select(dataset)
    (axis,) = selection_blocks(result.report, result.scores)[2].draw().axes
    longer = [len(row["chosen"]) - len(row["rejected"]) for row in dataset]
    points = np.array([longer, dataset["m"]]).T
    kept = np.array(result.scores["kept"])
    for label, rows in (("dropped", ~kept), ("kept", kept)):
        (shown,) = [part for part in axis.collections if part.get_label() == label]
        assert np.asarray(shown.get_offsets()) == pytest.approx(points[rows])


# ---- figures and samples --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kept", "drawn", "overlap"),
    [
        ([3, 0, 1, 2], [7, 3, 5, 6], 0.25),
        ([0, 1, 2, 3], [4, 5, 6, 7], 0.0),
        ([0, 1, 2, 3], [3, 2, 1, 9], 0.75),
        ([4, 4, 4, 5, 6], [4, 0, 1, 2, 3], 1 / 3),  # drawn with replacement: each row counts once
    ],
)
def test_the_overlap_by_hand(kept, drawn, overlap):
    dataset = Dataset.from_list([{"text": str(i)} for i in range(10)])
    found = summarize(dataset, {"score": np.arange(10.0)}, np.array(kept), np.array(drawn))
    assert found["overlap_with_random"] == pytest.approx(overlap)


def test_the_overlap_is_that_of_the_scores_and_is_said(dataset, fifa):
    seen = set()
    for seed in range(6):
        result = fifa(seed=seed).select(dataset)
        overlap = len(rows_in(result.scores, "kept") & rows_in(result.scores, "random")) / K
        assert result.report["overlap_with_random"] == overlap
        said = f"{overlap:.1%} of the rows kept are among as many drawn at random, where 25.0% are expected"
        assert sentences(result.report)[0].startswith(said)
        seen.add(overlap)
    assert len(seen) > 1


def test_samples_are_of_both_sides_of_the_cut(dataset, fifa):
    result = fifa().select(dataset)
    score, samples = np.array(result.scores["score"]), result.report["samples"]
    order = np.argsort(-score, kind="stable").tolist()
    shown = {name: [sample["row"] for sample in rows] for name, rows in samples.items()}
    assert shown == {
        "kept, first": order[:3],
        "kept, last": order[K - 3 : K],
        "dropped, first": order[K : K + 3],
        "dropped, last": order[-3:],
    }
    for sample in itertools.chain(*samples.values()):
        row = dataset[sample["row"]]
        assert sample["score"] == score[sample["row"]]
        assert all(sample[name] == " ".join(row[name].split()) for name in ("prompt", "chosen", "rejected"))


def test_samples_that_were_dropped_were_not_kept():
    rows = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(N)]
    for seed in range(5):
        result = Random(count=K, seed=seed).select(Dataset.from_list(rows))
        kept = rows_in(result.scores, "kept")
        for name, samples in result.report["samples"].items():
            assert samples
            assert all((sample["row"] in kept) == name.startswith("kept") for sample in samples)


# ---- rows without a figure -----------------------------------------------------------------------------------


SELECTORS = {
    "perplexity": {},
    "el2n": {"keep": "lowest"},
    "grand": {"keep": "middle"},
    "pada": {},
    "ifd": {"drop_above": None},
    "grad_cos": {},
}


@pytest.mark.parametrize("by", SELECTORS)
def test_one_row_without_a_label_token_takes_no_figure_away(by, policy, tmp_path):
    """Figures and pictures are of the rows that have them, and how many have none is said."""
    rows = sft_data("prompt-completion", 9).to_list()
    rows[4]["prompt"] = " the cat" * 30  # longer than `max_length`
    data = Dataset.from_list(rows)
    options = {"target": data.select([0, 1])} if by == "grad_cos" else {}
    selector = build_selector(by, {"count": 4, "model": policy, "max_length": 24, "cache_folder": tmp_path, **options})
    selector = dataclasses.replace(selector, **SELECTORS[by])
    result = selector.select(data)
    name = {"pada": "grand"}.get(by, by)
    values = np.array(result.scores[name], dtype=np.float64)
    assert np.flatnonzero(np.isnan(values)).tolist() == [4]
    report = result.report
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    there = np.delete(values, 4)
    assert report["figures"][name]["all"]["mean"] == pytest.approx(there.mean())
    assert report["figures"][name]["all"]["q95"] == pytest.approx(np.quantile(there, 0.95))
    assert report["missing"][name] == 1
    assert any(f"1 row has no {name}" in sentence for sentence in sentences(report))
    if by != "pada":  # whose score is a probability, and that of a row which cannot be drawn is 0
        scores = np.delete(np.array(result.scores["score"], dtype=np.float64), 4)
        assert report["figures"]["score"]["all"]["mean"] == pytest.approx(scores.mean())
    figure = selection_blocks(report, result.scores)[1].draw()
    (axis,) = [axis for axis in figure.axes if axis.get_xlabel() == DRAWN[name]]
    heights = [patch.get_xy()[:, 1] for patch in axis.patches]
    assert all(np.isfinite(height).all() and height.max() > 0 for height in heights)
    shares = axis.patches[1].get_xy()[:, 1]
    assert sum(shares[1:-1:2]) == pytest.approx(1)
    assert "nan" not in render(report, result.scores).split("<img")[0]


def test_as_many_at_random_may_have_no_figure_at_all():
    dataset = Dataset.from_list([{"text": str(i)} for i in range(4)])
    score = np.array([3.0, 2.0, np.nan, 1.0])
    report = summarize(dataset, {"score": score}, np.array([0]), np.array([2]))
    assert report["figures"]["score"]["all"]["mean"] == 2
    assert set(report["figures"]["score"]["random"].values()) == {None}
    assert [sample["score"] for sample in report["samples"]["dropped, first"]] == [2, 1, None]
    rows = {"all": slice(None), "kept": np.arange(4) == 0, "random": np.arange(4) == 2}
    (axis,) = distributions({"score": score}, rows).axes
    assert len(axis.patches) == 3
    json.dumps(report, allow_nan=False)


# ---- as many at random ----------------------------------------------------------------------------------------


def test_the_baseline_is_drawn_at_random_from_the_seed():
    rows = Dataset.from_list([{"text": "a" * (i % 7)} for i in range(N)])
    draws = []
    for seed in range(60):
        scores = Length(count=K, seed=seed).select(rows).scores
        assert rows_in(scores, "random") == rows_in(Length(count=K, seed=seed).select(rows).scores, "random")
        draws.append(scores["random"])
    draws = np.array(draws)  # (60, N)
    assert (draws.sum(1) == K).all()
    assert len({tuple(row) for row in draws.tolist()}) == 60
    # Of 60 draws of a quarter each row is in 15, give or take 3.4 (one standard deviation).
    assert np.abs(draws.sum(0) - 15).max() <= 14


def test_the_baseline_is_another_draw_than_a_random_selection():
    rows = Dataset.from_list([{"text": "a"} for _ in range(N)])
    overlaps = [Random(count=K, seed=seed).select(rows).report["overlap_with_random"] for seed in range(40)]
    assert np.mean(overlaps) == pytest.approx(K / N, abs=0.08)  # a standard error is 0.02


# ---- what happens meanwhile -----------------------------------------------------------------------------------


def test_auto_takes_faiss_for_many_prompts(tmp_path, monkeypatch):
    pytest.importorskip("faiss")
    points = np.random.default_rng(0).standard_normal((400, 4)).astype(np.float32)
    for kind in neighbours.EXACT_ROWS:
        monkeypatch.setitem(neighbours.EXACT_ROWS, kind, 399)
    distances, facts = find_distances(points, 2, "auto", 0, Work(tmp_path))
    assert facts["search"] == "faiss"
    assert facts["recall"] > 0.9
    assert (distances >= neighbour_distances(points, 2) - 1e-3).all()
    at_the_bound, facts = find_distances(points[:399], 2, "auto", 0, Work(tmp_path))
    assert facts == {"search": "exact"}
    assert (at_the_bound == neighbour_distances(points[:399], 2)).all()


def test_auto_without_faiss_is_exact_and_says_so(tmp_path, monkeypatch, caplog):
    points = np.random.default_rng(0).standard_normal((400, 4)).astype(np.float32)
    for kind in neighbours.EXACT_ROWS:
        monkeypatch.setitem(neighbours.EXACT_ROWS, kind, 399)
    monkeypatch.setitem(sys.modules, "faiss", None)
    distances, facts = find_distances(points, 2, "auto", 0, Work(tmp_path))
    assert facts == {"search": "exact"}
    assert (distances == neighbour_distances(points, 2)).all()
    assert 'pip install "hf-gradkit[faiss]"' in caplog.text


def test_bars_on_the_main_process(dataset, fifa, monkeypatch, capsys):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    fifa(method="greedy").select(dataset)
    said = capsys.readouterr().err
    assert "scoring: 100%" in said
    assert f"{N}/{N}" in said
    assert "choosing: 100%" in said
    fifa(method="greedy").select(dataset)  # nothing is left to score
    assert "scoring" not in capsys.readouterr().err
    monkeypatch.setenv("TQDM_DISABLE", "1")
    fifa(method="greedy", quality=lambda rows: of_prompt(rows)).select(dataset)
    assert "scoring" not in capsys.readouterr().err
