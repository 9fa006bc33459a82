"""The report of a selection says and shows what was kept: figures by hand, samples, pictures, the random baseline."""

import itertools
import sys

import numpy as np
import pytest
from datasets import Dataset

from hf_gradkit.reporting.selection import distributions, selection_blocks, sentences
from hf_gradkit.selection import FiFA, Length, Random, neighbours
from hf_gradkit.selection.nearest import find_distances
from hf_gradkit.selection.neighbours import neighbour_distances
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
