"""Pages of data sets: a selection, and a scored data set. The viewer of the Hub shows their files as tables."""

from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

from ..reporting.selection import sentences
from .methods import first_sentence, selector_class
from .page import around, with_head
from .papers import Paper, paper_of
from .sources import is_hub_name
from .usage import NAME
from .words import code, command_without_paths, number, table, value_of, without_paths

SCORES, SCORED = "scores.parquet", "scored.parquet"
LIMITS = "License and limits are those of the source. A selection inherits the errors of what it was selected by."


def selection_page(
    folder: Path, figures: dict[str, Any], data_file: str, repo: str | None = None, **given: Any
) -> DatasetCard:
    """Return the page of what `gradkit select` left in a folder.

    Args:
        folder: with the selected rows, which become the data set, and the scores, which become its second part.
        figures: `selection.json`.
        data_file: the selected rows. Where they are parquet, as on the Hub, the scores are the second part; `datasets`
            reads one kind of file from a repository.
        repo: where it goes on the Hub, or None where that is not known yet.
        given: metadata that the user gives: license, language, tags.
    """
    source, split = figures.get("source", "a data set whose name was not recorded"), figures.get("split")
    selector, paper = _selector(figures["by"])
    files = {"default": data_file}
    if data_file.endswith(".parquet"):
        files["scores"] = SCORES
    body = [
        f"# {figures['kept']} of {figures['rows']} rows of {_short(source)}, selected by {figures['by']}",
        f"Selected from {_linked(source)}{f', split `{split}`' if split else ''}, with hf_gradkit.",
        selector,
        _use(repo, list(files)),
        "The columns are those of the source. `scores.parquet` has one row for each row of the source, with whether "
        "it was kept and every figure; `selection.json` has the options and what is said here.",
        "\n".join(f"- {sentence}" for sentence in sentences(figures)),
        "## What the selection did",
        table(["mean of", "all rows", "kept", "as many at random"], _means(figures)),
        "## Options",
        "\n".join(f"- `{name}`: `{value_of(value)}`" for name, value in figures["options"].items()),
        *_command(figures),
        *_citation(paper),
        LIMITS,
    ]
    metadata = _metadata(files, ["data-selection", figures["by"]], source, given)
    return DatasetCard(with_head(metadata, around(folder, "\n\n".join(part for part in body if part))))


def scores_page(folder: Path, figures: dict[str, Any], repo: str | None = None, **given: Any) -> DatasetCard:
    """Return the page of what `gradkit score` left in a folder: the data with its scores as columns.

    Args:
        folder: with the scored data.
        figures: `scores.json`.
        repo: where it goes on the Hub, or None where that is not known yet.
        given: metadata that the user gives: license, language, tags.
    """
    source, split = figures.get("source", "a data set whose name was not recorded"), figures.get("split")
    by = [figures["by"]] if isinstance(figures["by"], str) else list(figures["by"])
    pictures = [name for name in ("margins.png", "difficulty.png") if (folder / name).is_file()]
    body = [
        f"# {_short(source)}, scored: {', '.join(by)}",
        f"{figures['rows']} rows of {_linked(source)}{f', split `{split}`' if split else ''}, scored by "
        f"`{value_of(str(figures['model']))}` with hf_gradkit. The scores are columns beside those of the source.",
        _use(repo, ["default"]),
        "## Figures",
        _figures(figures),
        *(f"![{name.partition('.')[0]}]({name})" for name in pictures),
        *_command(figures),
        "License and limits are those of the source. Scores are one model's view, and inherit its errors.",
    ]
    metadata = _metadata({"default": SCORED}, ["data-scores", *by], source, given)
    return DatasetCard(with_head(metadata, around(folder, "\n\n".join(part for part in body if part))))


def _metadata(files: dict[str, str], tags: list[str], source: str, given: dict[str, Any]) -> DatasetCardData:
    tags = ["hf_gradkit", *tags, *(given.get("tags") or [])]
    return DatasetCardData(
        tags=list(dict.fromkeys(tags)),
        source_datasets=[source] if is_hub_name(source) else None,
        configs=[
            {"config_name": name, "data_files": [{"split": "train", "path": file}]} for name, file in files.items()
        ],
        **{key: value for key, value in given.items() if value and key != "tags"},
    )


def _selector(name: str) -> tuple[str, Paper | None]:
    """Return what a selector is, in words, and its paper."""
    try:
        cls = selector_class(name)
    except ValueError:  # of the user's own, on another machine
        return f"`{name}` is a selector of the author's own.", None
    paper = paper_of(cls)
    return f"`{name}`: {first_sentence(cls)}{f' {paper.link}.' if paper else ''}", paper


def _means(figures: dict[str, Any]) -> list[list[str]]:
    parts = ("all", "kept", "random")
    return [[name, *(number(of[part]["mean"]) for part in parts)] for name, of in figures["figures"].items()]


def _figures(figures: dict[str, Any]) -> str:
    """Return the figures of scores: those of margins, or of each score."""
    if "scores" not in figures:
        names = ("agreement", "mean_margin", "std_margin", "temperature")
        return table(["figure", "value"], [[name, number(figures[name])] for name in names if figures.get(name)])
    shown = ("mean", "std", "q05", "median", "q95")
    rows = [[name, *(number(of[key]) if key in of else "" for key in shown)] for name, of in figures["scores"].items()]
    return table(["score", *shown], rows)


def _use(repo: str | None, configs: list[str]) -> str:
    where = repo or NAME
    lines = ["from datasets import load_dataset", "", f'dataset = load_dataset("{where}", split="train")']
    lines += [f'{name} = load_dataset("{where}", "{name}", split="train")' for name in configs[1:]]
    return code("\n".join(lines), "python")


def _command(figures: dict[str, Any]) -> list[str]:
    return ["## Run it again", code(command_without_paths(figures["command"]))] if figures.get("command") else []


def _citation(paper: Paper | None) -> list[str]:
    return ["## Citation", code(paper.bibtex, "bibtex")] if paper else []


def _short(source: str) -> str:
    return source if is_hub_name(source) else source.rstrip("/").rpartition("/")[2]


def _linked(source: str) -> str:
    if is_hub_name(source):
        return f"[{source}](https://huggingface.co/datasets/{source})"
    return f"`{without_paths(source)}`"
