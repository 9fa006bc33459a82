"""What scoring needs of any model, besides its figures: the type of its weights, its tokenizer, its limit, a cache."""

import os
from pathlib import Path
from typing import Any

import datasets
from peft import PeftConfig
from transformers import AutoTokenizer

from .._text import did_you_mean, listing
from .fingerprints import find_model
from .records import model_name

DTYPES = ("auto", "bfloat16", "float16", "float32")
OF_TOKENIZERS = ("revision", "trust_remote_code")  # arguments of `from_pretrained` that tokenizers take as well


def check_dtype(dtype: Any) -> None:
    """Raise `ValueError` unless weights can be loaded in this type, a torch one or a name of `DTYPES`."""
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise ValueError(f"`dtype` is {dtype!r}.{did_you_mean(dtype, DTYPES)} Known types: {listing(DTYPES)}.")


def is_saved(model: Any) -> bool:
    """Return whether a model is a folder or a name, and not one in memory."""
    return isinstance(model, (str, os.PathLike))


def load_tokenizer(name: str, **options: Any) -> Any:
    """Return the tokenizer of a saved model: the adapter's own if there is one, else that of its base.

    Args:
        name: folder or name on the Hub.
        options: `revision` and `trust_remote_code`, of all that `from_pretrained` takes.
    """
    folder = find_model(name, options.get("revision"))
    if not (folder / "tokenizer_config.json").exists() and (folder / "adapter_config.json").exists():
        config = PeftConfig.from_pretrained(str(folder))
        folder = find_model(config.base_model_name_or_path, config.revision)
    return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=options.get("trust_remote_code", False))


def tokenizer_of(model: Any, options: dict[str, Any], kind: str = "model") -> Any:
    """Return the tokenizer that was saved with a model, or where one in memory was loaded from.

    Args:
        model: folder, name or model in memory.
        options: arguments of `from_pretrained`.
        kind: what the model is called in the message.

    Raises:
        ValueError: for a model in memory that does not say where it is from.
    """
    known = {name: options[name] for name in OF_TOKENIZERS if name in options}
    if is_saved(model):
        return load_tokenizer(str(model), **known)
    if not model_name(model):
        raise ValueError(f"The {kind} was given as an object without a name: give its `tokenizer` as well.")
    return load_tokenizer(model_name(model), **known)


def position_limit(model: Any) -> int | None:
    """Return how many tokens a model can read, or None where its configuration does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def score_cache(folder: str | os.PathLike | None) -> Path:
    """Return where scores are kept: the folder that is given, or one beside the cache of `datasets`."""
    return Path(folder or Path(datasets.config.HF_DATASETS_CACHE) / "hf_gradkit" / "scores")
