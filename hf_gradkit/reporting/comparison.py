"""What a second model does better and what worse than a first, by example, from two outputs of `gradkit score`."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from datasets import Dataset

from .blocks import Block
from .figures import COLOURS, _panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DATA, FIGURES = "scored.parquet", "scores.json"  # of `gradkit score`
SHOWN = 5  # examples named at either end
Z_95 = 1.959964


@dataclass(frozen=True)
class Measure:
    """A score that two models are compared by.

    Attributes:
        column: of the scored data.
        words: what it is.
        higher_is_better: whether more of it is better.
        right: whether an example is right, by its score, (n,) -> (n,) bool; None where the score does not say.
        right_words: what being right means.
    """

    column: str
    words: str
    higher_is_better: bool
    right: Callable[[np.ndarray], np.ndarray] | None = None
    right_words: str = ""


MEASURES = (
    Measure(
        "token_accuracy",
        "share of the label tokens that are the model's first choice",
        True,
        lambda values: values == 1,
        "every label token is the model's first choice",
    ),
    Measure(
        "reward_margin",
        "reward margin, chosen minus rejected",
        True,
        lambda values: values > 0,
        "the chosen answer has the higher reward",
    ),
    Measure("loss", "loss, nats a token", False),
)


@dataclass(frozen=True)
class Scored:
    """A data set with the scores of a model.

    Attributes:
        name: of the folder.
        model: what scored.
        dataset: the rows, with their scores.
    """

    name: str
    model: str
    dataset: Dataset

    @property
    def measures(self) -> list[Measure]:
        """What this can be compared by."""
        return [measure for measure in MEASURES if measure.column in self.dataset.column_names]


@dataclass(frozen=True)
class Comparison:
    """A score of the same examples by two models, where both have one.

    Attributes:
        measure: what is compared.
        rows: of the first data set. (n,) int
        before, after: the scores. (n,) float64
    """

    measure: Measure
    rows: np.ndarray
    before: np.ndarray
    after: np.ndarray

    @property
    def gain(self) -> np.ndarray:
        """How much better the second model is at each example. (n,)"""
        return (self.after - self.before) * (1 if self.measure.higher_is_better else -1)

    def table(self) -> np.ndarray:
        """Return how many examples are right before (rows: yes, no) and now (columns: yes, no). (2, 2) int"""
        before, after = self.measure.right(self.before), self.measure.right(self.after)
        return np.array([[(a & b).sum() for b in (after, ~after)] for a in (before, ~before)])


def read_scored(path: str | Path) -> Scored | None:
    """Return the data that `gradkit score` wrote into a folder, or None if the folder holds none."""
    folder = Path(path)
    if not (folder / FIGURES).is_file() or not (folder / DATA).is_file():
        return None
    model = json.loads((folder / FIGURES).read_text())["model"]
    return Scored(folder.resolve().name, model, Dataset.from_parquet(str(folder / DATA)))


def compare(before: Scored, after: Scored) -> list[Comparison]:
    """Return the comparison by each score that both have; examples are matched by their ids, or by their rows.

    Raises:
        ValueError: if they are not of the same examples, or have no score in common.
    """
    measures = [measure for measure in before.measures if measure in after.measures]
    if not measures:
        raise ValueError(
            f"{before.name!r} and {after.name!r} have no score in common to compare: there are "
            f"{[m.column for m in before.measures]} and {[m.column for m in after.measures]}. Score both with the "
            "same --by (loss, token_accuracy or reward)."
        )
    places = _matched(before, after)
    found = []
    for measure in measures:
        first = np.array(before.dataset[measure.column], dtype=np.float64)
        second = np.array(after.dataset[measure.column], dtype=np.float64)[places]
        rows = np.flatnonzero(np.isfinite(first) & np.isfinite(second))  # an example without labels has no score
        if len(rows):
            found.append(Comparison(measure, rows, first[rows], second[rows]))
    if not found:
        raise ValueError(f"No example has a score in both {before.name!r} and {after.name!r}.")
    return found


def _matched(before: Scored, after: Scored) -> np.ndarray:
    """Return the row of each of the first data set's examples in the second one. (n,) int"""
    if "example_id" not in before.dataset.column_names or "example_id" not in after.dataset.column_names:
        return _same_order(before, after)
    place = {key: row for row, key in enumerate(after.dataset["example_id"])}
    missing = [key for key in before.dataset["example_id"] if key not in place]
    if missing or len(after.dataset) != len(before.dataset):
        raise ValueError(
            f"{before.name!r} ({len(before.dataset)} examples) and {after.name!r} ({len(after.dataset)}) are not of "
            f"the same examples: {len(missing)} of the first are not in the second"
            f"{f', such as {missing[0]!r}' if missing else ''}. Score the same file with both models."
        )
    return np.array([place[key] for key in before.dataset["example_id"]])


def _same_order(before: Scored, after: Scored) -> np.ndarray:
    """Return the rows as they are, of data without ids, if both hold the same in the same order. (n,) int"""
    first, second = (
        [[row.get(name) for name in ("prompt", "chosen", "rejected")] for row in one.dataset]
        for one in (before, after)
    )
    if first != second:
        raise ValueError(
            f"{before.name!r} ({len(first)} rows) and {after.name!r} ({len(second)} rows) do not hold the same "
            "examples in the same order. Score the same file with both models."
        )
    return np.arange(len(first))


def comparison_blocks(scored: list[Scored]) -> list[Block]:
    """Return what each further model does better and worse than the first one.

    Raises:
        ValueError: if there is only one, or they are not of the same examples.
    """
    if len(scored) == 1:
        raise ValueError(
            f"{scored[0].name!r} holds the scores of one model, {scored[0].model}. Give the scores of a second one on "
            "the same data, and the page says what got better and what got worse."
        )
    blocks = []
    for after in scored[1:]:
        for comparison in compare(scored[0], after):
            blocks += _blocks(comparison, scored[0], after)
    return blocks


def _blocks(comparison: Comparison, before: Scored, after: Scored) -> list[Block]:
    measure, gain = comparison.measure, comparison.gain
    title = f"What got better, what got worse: {measure.column}, {before.name} to {after.name}"
    error = Z_95 * gain.std(ddof=1) / math.sqrt(len(gain)) if len(gain) > 1 else math.nan
    change = (comparison.after - comparison.before).mean()
    text = [
        f"{measure.words[0].upper()}{measure.words[1:]}: {before.model} (before), {after.model} (now). "
        f"Mean {comparison.before.mean():.4g} before, {comparison.after.mean():.4g} now; "
        f"difference {change:+.4g} [{change - error:+.4g}, {change + error:+.4g}] "
        "(95 %, over the examples).",
        f"Of {len(gain)} examples, {(gain > 0).sum()} got better, {(gain < 0).sum()} got worse.",
    ]
    left_out = len(before.dataset) - len(gain)
    if left_out:
        text.append(f"{left_out} examples have no score by both and are left out.")
    blocks = []
    if measure.right is not None:
        blocks.append(_right_block(comparison, title, text))
        text, title = [], f"Before and now: {measure.column}, {after.name}"
    blocks.append(Block(title, tuple(text), draw=partial(scatter_figure, comparison)))
    blocks.append(_examples_block(comparison, before, after))
    return blocks


def _right_block(comparison: Comparison, title: str, text: list[str]) -> Block:
    (kept, lost), (won, never) = comparison.table()
    text = [
        *text,
        f"Right means that {comparison.measure.right_words}. {lost} examples were right before and are wrong now, "
        f"{won} the other way; a coin would split these {lost + won} as unevenly with a chance of "
        f"{sign_test(lost, won):.2g} (exact McNemar test).",
    ]
    rows = (("right before", str(kept), str(lost)), ("wrong before", str(won), str(never)))
    return Block(title, tuple(text), ("", "right now", "wrong now"), rows)


def sign_test(a: int, b: int) -> float:
    """Return the chance that a fair coin splits a + b throws at least as unevenly: the exact McNemar test."""
    n, fewer = int(a + b), int(min(a, b))
    tail = sum(math.comb(n, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**n)


def scatter_figure(comparison: Comparison) -> "Figure":
    """Each example's score before and now; on the line nothing changed."""
    figure, (axis,) = _panels(1)
    axis.set_title(comparison.measure.words)
    axis.set_xlabel("before")
    axis.set_ylabel("now")
    gain = comparison.gain
    for there, colour, words in ((gain > 0, COLOURS[2], "better"), (gain < 0, COLOURS[1], "worse")):
        axis.scatter(
            comparison.before[there], comparison.after[there], s=7, alpha=0.5, linewidths=0, color=colour, label=words
        )
    low = min(comparison.before.min(), comparison.after.min())
    high = max(comparison.before.max(), comparison.after.max())
    axis.plot([low, high], [low, high], color=COLOURS[5], linewidth=0.8)
    axis.legend(frameon=False, fontsize=8)
    return figure


def _examples_block(comparison: Comparison, before: Scored, after: Scored) -> Block:
    """Name the examples that changed most; where the measure says so, those that changed between right and wrong."""
    gain, changed = comparison.gain, np.ones(len(comparison.gain), dtype=bool)
    words = ("got worse", "got better")
    if comparison.measure.right is not None:
        right = comparison.measure.right
        changed = right(comparison.before) != right(comparison.after)
        words = ("right before, wrong now", "wrong before, right now")
    order = np.argsort(gain, kind="stable")
    worst = [i for i in order if changed[i] and gain[i] < 0][:SHOWN]
    best = [i for i in order[::-1] if changed[i] and gain[i] > 0][:SHOWN]
    rows = []
    for which, label in ((worst, words[0]), (best, words[1])):
        for i in which:
            row = int(comparison.rows[i])
            content = before.dataset[row]
            scores = f"{comparison.before[i]:.4g}", f"{comparison.after[i]:.4g}"
            rows.append((label, str(content.get("example_id", row)), *scores, _excerpt(before.dataset, row)))
    headings = ("", "example", "before", "now", "text")
    text = () if rows else ("~No example changed.",)
    return Block(f"Examples: {comparison.measure.column}, {after.name}", text, headings, tuple(rows))


def _excerpt(dataset: Dataset, row: int) -> str:
    from ..selection.summary import show

    shown = show(dataset, row)
    return " / ".join(f"{name}: {text}" for name, text in shown.items() if name != "row")
