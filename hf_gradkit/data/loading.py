"""Loads data sets: local files and folders, the Hub, and TRL's mixtures."""

from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, DatasetDict, IterableDataset, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError
from trl import DatasetMixtureConfig, get_dataset

from .._text import did_you_mean, listing
from .columns import column_names

# Which builder of `datasets` reads a file; compressed files are read by the builder of what is in them.
BUILDERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}
COMPRESSED = (".gz",)


def load_split(
    name: str, split: str, config: str | None = None, streaming: bool = False, file_split: str = "train"
) -> Dataset | IterableDataset:
    """Load one split of a data set.

    Args:
        name: a file, a folder of files, a folder written by `save_to_disk`, or a data set of the Hub.
        split: such as `"train"`, or `"train[:100]"` where the data is neither streamed nor from `save_to_disk`.
        config: name of the configuration of a Hub data set.
        streaming: read the rows as they are needed.
        file_split: the split that a single file, which has no splits, stands for.

    Raises:
        ValueError: if the file does not exist, is of an unknown kind or cut short, or the data has no such split
            (naming those there are).
    """
    path = Path(name).expanduser()
    if path.is_dir() and _is_saved(path):
        splits = _load_saved(path, file_split, streaming)
        return splits[_check_split(splits, split, name, sliceable=False)]
    if path.is_file() and path.stat().st_size == 0:
        raise ValueError(f"The data file {name!r} is empty. Check how it was written.")
    if path.is_file():
        arguments: dict[str, Any] = {"path": builder_of(path), "data_files": {file_split: str(path)}}
    elif path.is_dir():
        _check_folder(path)
        arguments = {"path": str(path)}
    elif _looks_local(name):
        raise ValueError(f"The data file {name!r} does not exist (looked in {Path.cwd()}). Correct the path.")
    else:
        arguments = {"path": name, "name": config}
    try:
        splits = load_dataset(**arguments, streaming=streaming)
        base = _check_split(splits, split, name, sliceable=not streaming)
        return splits[base] if base == split else load_dataset(**arguments, split=split)
    except (pa.ArrowInvalid, DatasetGenerationError, EOFError) as error:
        reason = str(error.__cause__ or error).rstrip(".")
        raise ValueError(
            f"The data {name!r} cannot be read to its end: {reason}. Was a file cut short, by a download or a copy "
            "that was broken off? Fetch it again; nothing was trained."
        ) from error


def builder_of(path: Path) -> str:
    """Return the name of the builder of `datasets` that reads a file.

    Raises:
        ValueError: for an unknown extension.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = bool(suffixes) and suffixes[-1] in COMPRESSED
    if packed:
        suffixes.pop()
    if not suffixes or suffixes[-1] not in BUILDERS or (packed and suffixes[-1] == ".parquet"):
        text = [kind for kind in BUILDERS if kind != ".parquet"]
        raise ValueError(
            f"The data file {str(path)!r} has an unknown extension. Known ones: {listing(BUILDERS)}; {listing(text)} "
            f"also with {listing(COMPRESSED)} after it."
        )
    return BUILDERS[suffixes[-1]]


def _looks_local(name: str) -> bool:
    """Whether a name that does not exist on disk was meant as a path: Hub names are `name` or `owner/name`."""
    path = Path(name)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    known = bool(suffixes) and suffixes[-1] in (*BUILDERS, *COMPRESSED)
    return known or path.is_absolute() or name.startswith((".", "~")) or len(path.parts) > 2


def _check_folder(path: Path) -> None:
    readable = [file for file in path.rglob("*") if file.is_file() and _is_readable(file)]
    if not readable:
        raise ValueError(
            f"The folder {str(path)!r} holds no data file. Known extensions: {listing(BUILDERS)}, each also with "
            f"{listing(COMPRESSED)} after it."
        )


def _is_readable(path: Path) -> bool:
    try:
        return bool(builder_of(path))
    except ValueError:
        return False


def _is_saved(path: Path) -> bool:
    return (path / "dataset_dict.json").exists() or (path / "state.json").exists()


def _load_saved(path: Path, file_split: str, streaming: bool) -> dict[str, Any]:
    saved = load_from_disk(str(path))
    splits = saved if isinstance(saved, DatasetDict) else {file_split: saved}
    if streaming:
        return {name: dataset.to_iterable_dataset() for name, dataset in splits.items()}
    return dict(splits)


def _check_split(splits: dict[str, Any], split: str, name: str, sliceable: bool) -> str:
    """Return the split's name without a slice, or raise."""
    base = split.partition("[")[0] if sliceable else split
    if base not in splits:
        raise ValueError(
            f"{name!r} has no split {split!r}.{did_you_mean(split, splits)} Its splits: {listing(splits)}."
            + ("" if sliceable or "[" not in split else " A part of a split cannot be taken here.")
        )
    return base


def load_mixture(mixture: DatasetMixtureConfig) -> dict[str, Dataset | IterableDataset]:
    """Load TRL's mixture of data sets; the `path` of an entry may also be a local file.

    Raises:
        ValueError: for a local file that is missing or of an unknown kind, and for a test split of a stream.
    """
    if mixture.streaming and mixture.test_split_size is not None:
        raise ValueError(
            f"`test_split_size` is {mixture.test_split_size}, but a streamed mixture cannot be split. Set "
            "`streaming: false`, or give the test data as `eval_dataset_name`."
        )
    for entry in mixture.datasets:
        path = Path(entry.path).expanduser()
        if path.is_file():
            entry.path, entry.data_files = builder_of(path), str(path)
        elif entry.data_files is None and _looks_local(entry.path) and not path.is_dir():
            raise ValueError(f"`datasets` names the file {entry.path!r}, which does not exist. Correct the path.")
    return get_dataset(mixture)


def map_columns(
    dataset: Dataset | IterableDataset, mapping: dict[str, str], name: str = "The data"
) -> Dataset | IterableDataset:
    """Rename columns.

    Args:
        dataset: the data.
        mapping: existing name to new name.
        name: what the data is called in messages.

    Raises:
        ValueError: if a column is missing (naming those there are) or a new name is taken.
    """
    present = column_names(dataset)
    for old, new in mapping.items():
        if old not in present:
            raise ValueError(
                f"`column_mapping` renames {old!r}, but {name} has no such column.{did_you_mean(old, present)} "
                f"Its columns: {listing(present)}."
            )
        if (new in present and new not in mapping) or list(mapping.values()).count(new) > 1:
            raise ValueError(
                f"`column_mapping` renames {old!r} to {new!r}, but {name} would then have two columns of that name. "
                f"Its columns: {listing(present)}. Rename the other one as well."
            )
    changed = {old: new for old, new in mapping.items() if old != new}
    if set(changed) & set(changed.values()):  # names change hands, which a stream refuses in one step
        between = {old: f"{old} (renamed)" for old in changed}
        dataset = dataset.rename_columns(between)
        changed = {between[old]: new for old, new in changed.items()}
    return dataset.rename_columns(changed) if changed else dataset
