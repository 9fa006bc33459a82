"""The page of a selection: what was kept and dropped, in pictures and in samples, beside a random choice."""

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset

from .blocks import Block, html_page
from .figures import COLOURS, _panels, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PARTS = {"all": "all rows", "kept": "kept", "random": "as many at random"}
# Columns of the scores that are drawn, and what their axes are called.
DRAWN = {
    "score": "score",
    "margin": "margin: chosen minus rejected",
    "quality": "quality of the prompt",
    "neighbour_distance": "distance to the k-th nearest other prompt",
    "chosen_length": "characters of the chosen answer",
    "length": "characters of the answer",
    "loss": "loss, nats a token",
    "perplexity": "perplexity",
    "weight": "weight",
    "grad_cos": "Grad-Cos influence",
    "tracin": "TracIn influence",
    "gradient_norm": "length of the gradient",
    "ifd": "IFD",
    "el2n": "EL2N",
    "grand": "GraNd",
}
A_ROW = 3
MOST_POINTS = 4000


def write_selection_report(report: dict[str, Any], scores: Dataset, path: str | Path) -> Path:
    """Write the page of a selection and return its path.

    Args:
        report: of the selection.
        scores: of the selection, one row an input row.
        path: where the page goes.

    Raises:
        ImportError: if matplotlib is missing; the message says what to install.
    """
    require_matplotlib()
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(render(report, scores), encoding="utf-8")
    os.replace(temporary, path)
    return path


def render(report: dict[str, Any], scores: Dataset) -> str:
    """Return the page as HTML with its figures inside; it loads nothing."""
    return html_page(f"hf_gradkit selection: {headline(report)}", selection_blocks(report, scores))


def headline(report: dict[str, Any]) -> str:
    """Return how many rows were kept, of how many, and by what."""
    return f"{report['kept']} of {report['rows']} rows by {report['by']}"


def selection_blocks(report: dict[str, Any], scores: Dataset) -> list[Block]:
    """Return what there is to say and to see of a selection; arguments are those of `write_selection_report`."""
    values, rows = _drawn(scores)
    blocks = [
        Block("", tuple(sentences(report))),
        Block("Before and after", draw=lambda: distributions(values, rows)),
    ]
    if "margin" in values and "chosen_length" in values:
        longer = values["chosen_length"] - np.array(scores["rejected_length"], dtype=np.float64)
        picture = partial(margin_and_length, values["margin"], longer, rows["kept"])
        blocks.append(Block("Margin and length", draw=picture))
    return [*blocks, _figures(report), *_prompts(report), *_samples(report), _options(report)]


def selection_block(name: str, report: dict[str, Any], scores: Dataset) -> Block:
    """Return a selection at a glance, for a page that shows other things as well."""
    values, rows = _drawn(scores)
    picture = partial(distributions, values, rows)
    return Block(f"Selection {name}: {headline(report)}", tuple(sentences(report)), draw=picture)


def _drawn(scores: Dataset) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the figures that are drawn, and which rows belong to each part. (n,) each"""
    values = {name: np.array(scores[name], dtype=np.float64) for name in DRAWN if name in scores.column_names}
    values = {name: numbers for name, numbers in values.items() if np.isfinite(numbers).any()}
    return values, {"all": slice(None), **{part: np.array(scores[part], dtype=bool) for part in ("kept", "random")}}


def sentences(report: dict[str, Any]) -> list[str]:
    """Return what there is to say of a selection, a sentence each."""
    expected = report["kept"] / report["rows"]
    said = [
        f"{report['overlap_with_random']:.1%} of the rows kept are among as many drawn at random, where "
        f"{min(1.0, expected):.1%} are expected of a choice that has nothing to do with the draw."
    ]
    said += [f"{number} rows were ruled out: {rule}." for rule, number in report["ruled_out"].items()]
    said += _missing(report.get("missing", {}))
    correlations = report.get("margin_and_length", {})
    if correlations.get("spearman") is not None:
        said.append(
            "The margin's rank correlation with how much longer the chosen answer is: "
            f"{correlations['spearman']:+.2f} (linear: {correlations['pearson']:+.2f}). Far above 0, large margins "
            "are partly long answers."
        )
    entropy = {part: value for part, value in report.get("entropy", {}).items() if value is not None}
    if entropy:
        numbers = ", ".join(f"{PARTS[part]} {value:.1f}" for part, value in entropy.items())
        said.append(
            f"Entropy of the prompts, in nats: {numbers}. It depends on the number of prompts: compare what was kept "
            "with as many at random."
        )
    neighbours = report.get("neighbours", {})
    if "recall" in neighbours:
        said.append(
            f"Neighbours were approximated by faiss: {neighbours['recall']:.1%} of the exact ones were found, and "
            f"distances are {neighbours['inflation']:.3f} times too large on average."
        )
    if "influence" in report:
        said.append(_influence(report["influence"]))
    total = sum(report["seconds"].values())
    if total > 0:
        shares = ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in report["seconds"].items())
        said.append(f"It took {total:.1f} s: {shares}.")
    return said


def _missing(found: dict[str, int]) -> list[str]:
    """Return a sentence for each number of rows that lack figures."""
    said = []
    for number in dict.fromkeys(found.values()):
        names = ", ".join(name for name in found if found[name] == number)
        rows = "1 row has" if number == 1 else f"{number} rows have"
        said.append(f"{rows} no {names}: means and pictures are of the others.")
    return said


def _influence(found: dict[str, Any]) -> str:
    shown = [
        f"{name} {values['gradient_norm']:+.2f} with the gradient's length and {values['label_tokens']:+.2f} with the "
        "number of tokens"
        for name, values in found["correlation"].items()
        if None not in values.values()
    ]
    return (
        f"Rank correlations of the influence on {found['targets']} target examples: {'; '.join(shown) or 'none'}. The "
        f"standard error of Grad-Cos from its projections is {found['standard_error']:.2g}, where its spread over the "
        f"examples is {found['spread']:.2g}."
    )


def distributions(values: dict[str, np.ndarray], rows: dict[str, Any]) -> "Figure":
    """Histograms of each figure: all rows, those kept, as many at random. (n,) each"""
    from matplotlib.figure import Figure

    lines = -(-len(values) // A_ROW)
    figure = Figure(figsize=(4.6 * min(A_ROW, len(values)), 3.2 * lines), layout="constrained")
    axes = figure.subplots(lines, min(A_ROW, len(values)), squeeze=False).flatten()
    for axis in axes[len(values) :]:
        axis.set_visible(False)
    for axis, (name, numbers) in zip(axes, values.items(), strict=False):
        there = np.isfinite(numbers)
        _histograms(axis, {part: numbers[numbered][there[numbered]] for part, numbered in rows.items()})
        axis.set_xlabel(DRAWN[name])
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def margin_and_length(margins: np.ndarray, longer: np.ndarray, kept: np.ndarray) -> "Figure":
    """Margin against how much longer the chosen answer is, kept pairs and dropped ones. (n,) each"""
    figure, (axis,) = _panels(1)
    axis.set_xlabel("characters, chosen minus rejected")
    axis.set_ylabel(DRAWN["margin"])
    for part, colour, label in ((~kept, "#999999", "dropped"), (kept, COLOURS[1], "kept")):
        numbers = np.flatnonzero(part)
        numbers = numbers[:: max(1, len(numbers) // MOST_POINTS)]
        axis.scatter(longer[numbers], margins[numbers], s=6, alpha=0.4, color=colour, linewidths=0, label=label)
    axis.legend(frameon=False, fontsize=8)
    return figure


def _histograms(axis: "Axes", parts: dict[str, np.ndarray]) -> None:
    low, high = np.quantile(parts["all"], [0.005, 0.995])
    number = int(np.clip(2 * len(parts["kept"]) ** 0.5, 6, 30))
    bins = np.linspace(low, high if high > low else low + 1, number + 1)
    for (part, numbers), colour in zip(parts.items(), ("#bbbbbb", COLOURS[1], COLOURS[0]), strict=True):
        shares = np.full(len(numbers), 1 / max(1, len(numbers)))
        style = {"histtype": "stepfilled", "alpha": 0.6} if part == "all" else {"histtype": "step", "linewidth": 1.6}
        axis.hist(np.clip(numbers, low, bins[-1]), bins=bins, weights=shares, color=colour, label=PARTS[part], **style)
    axis.set_ylabel("share of rows")
    axis.spines[["top", "right"]].set_visible(False)


def _figures(report: dict[str, Any]) -> Block:
    rows = []
    for name, parts in report["figures"].items():
        rows.append((name, *(_mean(parts[part]) for part in PARTS)))
    return Block("Means and standard deviations", (), ("figure", *PARTS.values()), tuple(rows))


def _mean(part: dict[str, float | None]) -> str:
    return "none" if part["mean"] is None else f"{part['mean']:.4g} ± {part['std']:.3g}"


def _prompts(report: dict[str, Any]) -> list[Block]:
    if "prompts" not in report:
        return []
    rows = [
        (end, f"{prompt['distance']:.4g}", prompt["prompt"])
        for end, prompts in report["prompts"].items()
        for prompt in prompts
    ]
    return [Block("Prompts with the nearest and the farthest others", (), ("", "distance", "prompt"), tuple(rows))]


def _samples(report: dict[str, Any]) -> list[Block]:
    blocks = []
    for name, samples in report["samples"].items():
        names = [key for key in ("row", "score", "prompt", "chosen", "rejected", "completion") if key in samples[0]]
        rows = tuple(tuple(_cell(sample.get(key, "")) for key in names) for sample in samples)
        blocks.append(Block(f"Samples: {name}", (), tuple(names), rows))
    return blocks


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "none" if value is None else str(value)


def _options(report: dict[str, Any]) -> Block:
    told = (*report["options"].items(), *report.get("models", {}).items(), *report["versions"].items())
    rows = [(name, str(value)) for name, value in told]
    return Block("Options and versions", (), ("option", "value"), tuple(rows), folded=True)
