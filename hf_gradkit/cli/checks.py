"""What a training job checks before it loads a model or prepares data, where TRL would fail with a bare name."""

from pathlib import Path
from typing import Any

from .._text import listing

MODEL_FILES = ("config.json", "adapter_config.json")
PAIRS = ("chosen", "rejected")


def check_model_folder(name: str) -> None:
    """Refuse a model's name that can only be a folder, where there is none, or a folder that holds no model.

    Raises:
        ValueError: which names the folder, and models below it.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if not any((path / file).is_file() for file in MODEL_FILES):
            below = sorted(found.parent for file in MODEL_FILES for found in path.glob(f"*/{file}"))
            near = f" Below it there is {listing(map(str, below[:3]))}." if below else ""
            raise ValueError(
                f"`model_name_or_path` is {name!r}, a folder that holds no model: neither {MODEL_FILES[0]} nor "
                f"{MODEL_FILES[1]} is in it.{near}"
            )
    elif path.is_absolute() or name.startswith((".", "~")) or len(path.parts) > 2:
        raise ValueError(
            f"`model_name_or_path` is {name!r}, but there is no such folder (looked in {Path.cwd()}). Correct the "
            "path."
        )


def not_loaded(name: str, error: OSError) -> OSError:
    """Return an error of loading a model with the model's name in it, which transformers' own may lack.

    Args:
        name: what was to be loaded.
        error: what was raised.
    """
    if error.errno is not None or Path(name).expanduser().is_dir():  # of a disk or the network, or of the model itself
        return error
    return OSError(
        f"`model_name_or_path` is {name!r}, which is neither a folder here (looked in {Path.cwd()}) nor a model that "
        f"could be loaded from the Hub: {error}"
    )


def check_content_columns(job: str, data: Any, args: Any, what: str) -> None:
    """Refuse data that lack the columns that a job trains on.

    Args:
        job: "sft", "dpo" or "reward".
        data: a data set, its columns renamed, or None; a stream that does not know its columns is not looked into.
        args: the trainer's arguments.
        what: the data in words, such as "the training data".

    Raises:
        ValueError: which names the columns that are there, those that are needed, and how to rename them.
    """
    present = data.column_names if data is not None else None
    if not present or (getattr(args, "dataset_kwargs", None) or {}).get("skip_prepare_dataset"):
        return
    if job == "sft":
        field = args.dataset_text_field
        layouts = (("prompt", "completion"), ("messages",), ("conversations",), (field,), ("input_ids",))
        words = f"'prompt' and 'completion', or 'messages', or plain text in {field!r} (`dataset_text_field`)"
    else:
        layouts = (PAIRS, ("chosen_ids", "rejected_ids"), ("chosen_input_ids", "rejected_input_ids"))
        words = "'chosen' and 'rejected', and 'prompt' unless both begin with it"
    if any(set(layout) <= set(present) for layout in layouts):
        return
    remedy = "Rename columns with `column_mapping`, such as " + (
        """--column_mapping '{"question": "prompt", "answer": "completion"}'."""
        if job == "sft"
        else """--column_mapping '{"better": "chosen", "worse": "rejected"}'."""
    )
    if job == "sft" and set(PAIRS) <= set(present):
        remedy = "It has preference pairs, for which there are gradkit dpo and gradkit reward."
    elif job != "sft" and {"prompt", "completion"} <= set(present):
        remedy = "It has prompts with one completion each, for which there is gradkit sft."
    raise ValueError(
        f"gradkit {job} needs the columns {words}, and {what} does not have them. Its columns: {listing(present)}. "
        f"{remedy}"
    )
