"""Which files of a folder are published, and the folder that they are put together in."""

import fnmatch
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

WEIGHTS = ("model*.safetensors", "pytorch_model*.bin", "adapter_model.safetensors", "adapter_model.bin")
# Stays here: what is private by its name, hidden or half written; other models; what goes on with a training; and what
# has rows of the training data, or their names, in it.
KEPT_BACK = (
    *("_*", ".*", "*/.*", "*.tmp", "*.lock"),
    *("checkpoint-*", "fold-*"),
    *("optimizer*", "scheduler.pt", "scaler.pt", "rng_state*", "example_weighting.pt", "checkpoint_files.json"),
    *("global_step*", "pytorch_model_fsdp*", "training_args.bin", "zero_to_fp32.py", "latest"),
    *("scoring/*", "example_log*", "gradient_statistics.jsonl", "report.html", "report.md", "report_figures/*"),
)
DATASET_KEPT_BACK = ("_*", ".*", "*/.*", "*.tmp", "*.lock", "scoring/*")


@dataclass(frozen=True)
class Kind:
    """What a folder holds.

    Attributes:
        name: "model", "selection" or "scores".
        repo_type: of the repository that it goes to.
        kept_back: patterns of files that are not published.
    """

    name: str
    repo_type: str
    kept_back: tuple[str, ...]


MODEL = Kind("model", "model", KEPT_BACK)
SELECTION = Kind("selection", "dataset", DATASET_KEPT_BACK)
SCORES = Kind("scores", "dataset", DATASET_KEPT_BACK)


def kind_of(folder: Path, repo_type: str | None = None) -> Kind:
    """Return what a folder holds.

    Args:
        folder: that is to be published.
        repo_type: what the user says it is, "model" or "dataset"; None to find out.

    Raises:
        ValueError: if it is no folder, holds nothing that can be published, or something else than the user says.
    """
    if not folder.is_dir():
        raise ValueError(f"There is no folder {str(folder)!r} to push. Name the output folder of a command.")
    found = []
    if (folder / "selection.json").is_file() and any(folder.glob("selected.*")):
        found.append(SELECTION)
    elif (folder / "scores.json").is_file() and (folder / "scored.parquet").is_file():
        found.append(SCORES)
    has_weights = any(next(folder.glob(pattern), None) for pattern in WEIGHTS)
    if has_weights and ((folder / "config.json").is_file() or (folder / "adapter_config.json").is_file()):
        found.append(MODEL)
    fitting = [kind for kind in found if repo_type in (None, kind.repo_type)]
    if len(fitting) == 1:
        return fitting[0]
    if len(fitting) > 1:
        raise ValueError(
            f"{str(folder)!r} holds a model and a data set. Say which is meant: --repo_type model|dataset."
        )
    if found:
        raise ValueError(
            f"--repo_type is {repo_type!r}, but {str(folder)!r} holds a {found[0].repo_type}. Leave it out."
        )
    raise ValueError(_nothing(folder))


def _nothing(folder: Path) -> str:
    looked = (
        f"{str(folder)!r} holds nothing to push: no model (config.json or adapter_config.json, with weights), no "
        "selection (selection.json and selected.*) and no scores (scores.json and scored.parquet)."
    )
    if any(folder.glob("selected.*")):
        return (
            f"{str(folder)!r} holds an unfinished selection: gradkit select was stopped before it wrote "
            "selection.json, so the rows there may be of another selection than the rest. Run the same command again; "
            "what was scored is used again."
        )
    below = [*folder.glob("fold-*/config.json"), *folder.glob("checkpoint-*/config.json")]
    below += [*folder.glob("checkpoint-*/adapter_config.json")]
    if not below:
        return f"{looked} Name the output folder of a training, of gradkit select or of gradkit score."
    newest = max(below, key=lambda path: path.stat().st_mtime).parent
    return f"{looked} It has models below it: push one of them, such as {str(newest)!r}."


def published(folder: Path, kind: Kind) -> list[str]:
    """Return the files of a folder that are published, as paths in it, sorted."""
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return [name for name in files if not any(fnmatch.fnmatch(name, pattern) for pattern in kind.kept_back)]


def gather(folder: Path, names: list[str], target: Path, copy: bool) -> None:
    """Put files of a folder together in another one, as copies or as links; those that are there already stay.

    The folder itself is only read, so whatever happens afterwards takes nothing from it.
    """
    for name in names:
        path = target / name
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if copy:
            shutil.copy2(folder / name, path)
        else:
            os.symlink((folder / name).resolve(), path)
