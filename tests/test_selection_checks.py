"""What is missing is said before anything is scored, whichever component misses it."""

import sys

import pytest
from datasets import Dataset

from difficulty_helpers import sft_data
from hf_gradkit.selection import PADA, FiFA, GradCos
from pairs import make_pairs

N = 12


def refuse(rows):
    raise AssertionError("scored")


@pytest.fixture
def dataset():
    return Dataset.from_list(
        [row | {"grade": 1.0 * (i != 7) or None} for i, row in enumerate(make_pairs(N, "prompt"))]
    )


@pytest.mark.parametrize(
    ("components", "message"),
    [
        ({"quality": "column"}, "`quality` reads the column 'quality', but the data has no such column"),
        ({"quality": {"by": "column", "column": "grade"}}, r"not a finite number in rows \[7\], such as None"),
        ({"quality": {"by": "perplexity", "model": "./gone"}}, "The model folder './gone' does not exist"),
        ({"quality": {"by": "classifier", "model": "./gone"}}, "The model folder './gone' does not exist"),
        ({"embedder": {"by": "transformers", "model": "./gone"}}, "The model folder './gone' does not exist"),
        ({"margin": "columns", "quality": refuse}, "has no column with margins"),
        ({"margin": {"by": "reward_model", "model": "./gone"}, "quality": refuse}, "folder './gone' does not exist"),
        (
            {"margin": {"by": "implicit", "model": "here", "reference": "./gone"}, "quality": refuse},
            "folder './gone' does not exist",
        ),
    ],
)
def test_components_before_any_of_them_scores(components, message, dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    selector = FiFA(count=3, k=2, cache_folder=tmp_path / "cache", **{"margin": refuse, **components})
    with pytest.raises(ValueError, match=message):
        selector.select(dataset)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("library", "options"),
    [
        ("faiss", {"neighbours": "faiss"}),
        ("sentence_transformers", {"embedder": {"by": "sentence_transformers", "model": "x/y"}}),
    ],
)
def test_libraries_before_anything_is_scored(library, options, dataset, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)  # as if it were not installed
    with pytest.raises(ImportError, match=f"is '{library}', which is not installed: pip install"):
        FiFA(count=3, k=2, margin=refuse, cache_folder=tmp_path / "cache", **options).select(dataset)


def test_weights_that_the_data_has(policy, tmp_path):
    data = sft_data("prompt-completion", N).add_column("weight", [1.0] * N)
    with pytest.raises(ValueError, match="adds the column 'weight', and the data has one of that name"):
        PADA(model=policy, count=3, cache_folder=tmp_path / "cache").select(data)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": Dataset.from_list(make_pairs(4, "prompt"))}, "The data has preference pairs"),
        ({"target": sft_data("text", 4), "model": "./gone"}, "The model folder './gone' does not exist"),
        ({"target": "./gone.jsonl"}, "'./gone.jsonl' does not exist"),
    ],
)
def test_targets_before_any_gradient(options, message, policy, tmp_path):
    selector = GradCos(count=3, cache_folder=tmp_path / "cache", **{"model": policy, **options})
    with pytest.raises(ValueError, match=message):
        selector.select(sft_data("prompt-completion", N))
    assert not (tmp_path / "cache").exists()
