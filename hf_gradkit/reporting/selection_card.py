"""The data set card of a selection: what it was selected from, how, and what that did."""

from typing import Any

import yaml

from .selection import sentences


def selection_card(report: dict[str, Any], source: str, split: str, data_file: str, command: str) -> str:
    """Return the card as Markdown with its YAML head, which makes `data_file` the data of the folder.

    Args:
        report: of the selection.
        source: name of the data set that was selected from.
        split: its split.
        data_file: the selected rows, in the folder of the card.
        command: what makes the selection again.
    """
    head: dict[str, Any] = {
        "tags": ["hf_gradkit", "data-selection", report["by"]],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": data_file}]}],
    }
    if _is_hub_name(source):
        head["source_datasets"] = [source]
    lines = [
        "---",
        yaml.safe_dump(head, sort_keys=False).strip(),
        "---",
        "",
        f"# {report['kept']} of {report['rows']} rows of {source}, selected by {report['by']}",
        "",
        f"Selected from `{source}`, split `{split}`, with hf_gradkit:",
        "",
        f"    {command}",
        "",
        "The columns are those of the source. `scores.parquet` has one row for each row of the source, with whether "
        "it was kept and every figure; `selection.json` has the options and what is said here.",
        "",
        *[f"- {sentence}" for sentence in sentences(report)],
        "",
        "## What the selection did",
        "",
        "| mean of | all rows | kept | as many at random |",
        "|---|---|---|---|",
        *[
            f"| {name} | {parts['all']['mean']:.4g} | {parts['kept']['mean']:.4g} | {parts['random']['mean']:.4g} |"
            for name, parts in report["figures"].items()
        ],
        "",
        "## Options",
        "",
        *[f"- `{name}`: `{value}`" for name, value in report["options"].items()],
        "",
        "License and limits are those of the source. A selection inherits the errors of what it was selected by.",
        "",
    ]
    return "\n".join(lines)


def _is_hub_name(source: str) -> bool:
    return source.count("/") == 1 and "." not in source.rpartition("/")[2] and not source.startswith((".", "~", "/"))
