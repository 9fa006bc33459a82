"""What a selection did, in figures: of all rows, of those kept, and of as many drawn at random."""

from typing import Any

import numpy as np
from datasets import Dataset

from ..scoring.pairs import PAIR, parts_of
from .prompts import as_text, content_text, last_answer, prompt_text

SHOWN, LONGEST = 3, 240  # samples of each kind, and characters of one
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def summarize(dataset: Dataset, columns: dict[str, np.ndarray], kept: np.ndarray, drawn: np.ndarray) -> dict[str, Any]:
    """Return figures of a selection, as JSON can write them.

    - `figures`: of each column, mean and quantiles over all rows, those kept, and those drawn, of the rows that have
      the figure; None where none of them has;
    - `missing`: of each column, how many rows do not have the figure, where there are such rows;
    - `overlap_with_random`: share of the rows kept that are among as many drawn at random; kept / rows is expected;
    - `margin_and_length`: correlation of the margin with how much longer the chosen answer is, in characters;
    - `samples`: rows with the highest and the lowest scores, and those on both sides of the cut.

    Args:
        dataset: all rows.
        columns: figures of the rows, the lengths of answers among them. (n,) each
        kept: rows kept, best first. (K,)
        drawn: as many rows drawn at random. (K,)
    """
    figures = {
        name: values for name, values in columns.items() if values.dtype.kind == "f" and np.isfinite(values).any()
    }
    missing = {name: int((~np.isfinite(values)).sum()) for name, values in figures.items()}
    parts = {"all": slice(None), "kept": np.unique(kept), "random": drawn}
    report: dict[str, Any] = {
        "figures": {
            name: {part: _describe(values[rows]) for part, rows in parts.items()} for name, values in figures.items()
        },
        "missing": {name: number for name, number in missing.items() if number},
        "overlap_with_random": len(np.intersect1d(kept, drawn)) / len(np.unique(kept)),
        "samples": _samples(dataset, columns["score"], kept),
    }
    if "margin" in columns and "chosen_length" in figures:
        there = np.isfinite(columns["margin"])
        margin, difference = columns["margin"][there], (figures["chosen_length"] - figures["rejected_length"])[there]
        report["margin_and_length"] = {
            "pearson": correlation(margin, difference),
            "spearman": correlation(ranks(margin), ranks(difference)),
        }
    return report


def lengths(dataset: Dataset) -> dict[str, np.ndarray]:
    """Return the lengths of answers in characters: of both of a pair, or of the completion or text. (n,) each

    Of the answer alone, without its prompt and without the names of roles; of `messages`, the assistant's last turn.
    """
    present, rows = dataset.column_names, dataset.with_format(None)
    if set(PAIR) <= set(present):
        pairs = rows.select_columns([name for name in (*PAIR, "prompt") if name in present])
        answers = [[len(content_text(answer)) for answer in parts_of(row)[1:]] for row in pairs]
        found = np.array(answers, dtype=np.float64)
        return {"chosen_length": found[:, 0].copy(), "rejected_length": found[:, 1].copy()}
    for column in ("completion", "messages", "text"):
        if column in present:
            answers = (last_answer(value) if column == "messages" else value for value in rows[column])
            return {"length": np.array([len(content_text(answer)) for answer in answers], dtype=np.float64)}
    return {}


def correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Return Pearson's correlation, or None where one of the two is constant."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if len(a) < 2 or a.std() == 0 or b.std() == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def ranks(values: np.ndarray) -> np.ndarray:
    """Return the rank of each value, the mean rank for values that are equal. (n,) -> (n,)

    >>> ranks(np.array([3.0, 1.0, 3.0])).tolist()
    [1.5, 0.0, 1.5]
    """
    _, number, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + last - 1) / 2)[number]


def shorten(text: str) -> str:
    """Return the beginning of a text on one line."""
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def show(dataset: Dataset, row: int) -> dict[str, Any]:
    """Return a row for the report: its number, prompt and answers, shortened."""
    content = dataset.with_format(None)[int(row)]
    shown: dict[str, Any] = {"row": int(row)}
    try:
        prompt = prompt_text(content)
        shown["prompt"] = shorten(prompt)
    except ValueError:
        prompt = ""
    for name in ("chosen", "rejected", "completion"):
        if content.get(name) is not None:
            text = as_text(content[name])
            shown[name] = shorten(text[len(prompt) :] if prompt and text.startswith(prompt) else text)
    if content.get("messages"):
        shown["completion"] = shorten(as_text(content["messages"][-1:]))
    return shown


def _samples(dataset: Dataset, scores: np.ndarray, kept: np.ndarray) -> dict[str, list[dict[str, Any]]]:
    unique = np.unique(kept, return_index=True)[1]
    kept = kept[np.sort(unique)]
    dropped = np.setdiff1d(np.arange(len(dataset)), kept)
    dropped = dropped[np.argsort(-scores[dropped], kind="stable")]
    chosen = {
        "kept, first": kept[:SHOWN],
        "kept, last": kept[SHOWN:][-SHOWN:],
        "dropped, first": dropped[:SHOWN],
        "dropped, last": dropped[SHOWN:][-SHOWN:],
    }
    return {
        name: [{**show(dataset, row), "score": _number(scores[row])} for row in rows]
        for name, rows in chosen.items()
        if len(rows)
    }


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None  # JSON has no NaN


def _describe(values: np.ndarray) -> dict[str, float | None]:
    values = np.asarray(values, dtype=np.float64)
    values = values[np.isfinite(values)]
    names = [f"q{round(100 * q):02d}" for q in QUANTILES]
    if not len(values):
        return dict.fromkeys(("mean", "std", *names))
    quantiles = {name: float(np.quantile(values, q)) for name, q in zip(names, QUANTILES, strict=True)}
    return {"mean": float(values.mean()), "std": float(values.std()), **quantiles}
