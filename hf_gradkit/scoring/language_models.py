"""Loads causal language models, whole or as a LoRA adapter, and checks that examples fit them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM

from .._compat import whole_models
from .fingerprints import find_model
from .processes import world
from .saved_models import position_limit
from .token_rows import TokenRow


def load_language_model(name: str, dtype: Any = "auto", trainable: bool = False, **options: Any) -> Any:
    """Load a causal language model: a folder or a model of the Hub; a whole model, or an adapter with its base.

    Args:
        name: folder or name.
        dtype: of the weights; `"auto"` as they were saved.
        trainable: of an adapter, let its parameters require gradients, as in training.
        options: further arguments of `from_pretrained`.

    Returns:
        The model, in evaluation mode.

    Raises:
        ValueError: if there is no such model.
    """
    folder = find_model(name, options.pop("revision", None))
    options = {key: value for key, value in options.items() if value is not None}
    base = folder
    if (folder / "adapter_config.json").exists():
        config = PeftConfig.from_pretrained(str(folder))
        base = find_model(config.base_model_name_or_path, config.revision)
    with whole_models():
        model = AutoModelForCausalLM.from_pretrained(str(base), dtype=dtype, **options)
    if base is not folder:
        model = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    return model.eval()


@contextmanager
def ready_language_model(
    model: Any, dtype: Any = "auto", device: Any = None, trainable: bool = False, **options: Any
) -> Iterator[Any]:
    """Give a model in evaluation mode on its device: loaded, or the caller's, whose mode comes back in the end.

    Args:
        model: folder, name or model in memory.
        dtype: as for `load_language_model`.
        device: where it scores; by default where it is, or the process's own device.
        trainable: as for `load_language_model`.
        options: further arguments of `from_pretrained`.
    """
    loaded = isinstance(model, (str, os.PathLike))
    if loaded:
        model = load_language_model(str(model), dtype, trainable, **options)
    if device is not None or (loaded and "device_map" not in options):
        model.to(device or world().device)
    training = model.training
    try:
        yield model.eval()
    finally:
        model.train(training)


def check_rows(rows: list[TokenRow], model: Any) -> None:
    """Raise `ValueError` if a model does not know a token of the examples, or cannot read them to their end."""
    largest = max((int(row.input_ids.max()) for row in rows if len(row)), default=-1)
    known = model.get_input_embeddings().num_embeddings
    if largest >= known:
        raise ValueError(
            f"The tokenizer gives token {largest}, and the model knows {known}: they do not belong together. Give the "
            "model's own tokenizer."
        )
    longest, limit = max(rows, key=len), position_limit(model)
    if limit is not None and len(longest) > limit:
        raise ValueError(
            f"Row {longest.row} of the data has {len(longest)} tokens, and the model can read {limit} "
            f"(max_position_embeddings). Set `max_length` to at most {limit}."
        )
