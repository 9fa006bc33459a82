"""Functions of the user's own: a changed one is another one, however it is wrapped."""

import functools
import importlib
import math
import sys

import pytest

from hf_gradkit.selection.components import evaluate
from hf_gradkit.selection.functions import hash_function
from hf_gradkit.selection.work import Work
from pairs import pair_dataset

SOURCE = """
FACTOR = {factor}  {padding}

def score(rows, unused=None):
    return [FACTOR] * len(rows)

class Scorer:
    def __call__(self, rows):
        return score(rows)

    def method(self, rows):
        return score(rows)
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a module of the user's own, and return it imported."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(factor: int):
        (tmp_path / "my_scores.py").write_text(SOURCE.format(factor=factor, padding="#" * factor))
        sys.modules.pop("my_scores", None)
        importlib.invalidate_caches()
        return importlib.import_module("my_scores")

    yield write
    sys.modules.pop("my_scores", None)


@pytest.mark.parametrize(
    "take",
    [
        lambda module: module.score,
        lambda module: functools.partial(module.score, unused=1),
        lambda module: lambda rows: module.score(rows),
        lambda module: module.Scorer(),
        lambda module: module.Scorer().method,
    ],
    ids=["function", "partial", "closure", "object", "method"],
)
def test_a_changed_file_is_another_function(take, write, tmp_path):
    dataset, work = pair_dataset(20, "prompt"), Work(tmp_path / "work")
    for factor in (1, 1, 3):
        assert evaluate(take(write(factor)), "quality", dataset, work).tolist() == [factor] * 20
    assert len(list(work.folder.iterdir())) == 2


def test_what_is_installed_changes_no_hash(monkeypatch):
    """A string that happens to name a library is none of the user's code."""

    def names(rows):
        return ["json" in sys.modules, "pytest"]

    def nothing(rows):
        return [math.pi] * len(rows)

    before = hash_function(names), hash_function(nothing)
    monkeypatch.setattr("inspect.getsource", lambda module: f"other {module.__name__}")
    assert hash_function(nothing) != before[1]  # this file itself
    monkeypatch.undo()
    monkeypatch.delitem(sys.modules, "json")
    assert (hash_function(names), hash_function(nothing)) == before
