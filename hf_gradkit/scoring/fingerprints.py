"""Short hashes of models and data: the same content has the same one, wherever it is stored and however it is named.

A model on disk is known by the SHA-256 of its files, read in full: two reward models may differ in nothing but a head
of some kilobytes in many gigabytes. Files fetched from the Hub are named by that very hash in its cache, so they cost
nothing. A model in memory is known by its parameters, and has another hash than its files.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from huggingface_hub import snapshot_download

WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "adapter_model.bin")
SETTINGS = (
    *("config.json", "adapter_config.json", "*.index.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "chat_template.*", "*.py"),
)
SHORT = 12  # digits of a hash that is recorded with the data


def digest(*parts: Any) -> str:
    """Return one hash of several values that JSON can write. 32 hexadecimal digits"""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def hash_folder(folder: str | Path) -> str:
    """Hash a saved model: weights, configuration, tokenizer, chat template, and what an adapter is put on.

    Raises:
        ValueError: if the folder holds no weights.
    """
    folder = Path(folder)
    files = sorted({path for pattern in (*WEIGHTS, *SETTINGS) for path in folder.glob(pattern) if path.is_file()})
    if not any(path.match(pattern) for path in files for pattern in WEIGHTS):
        raise ValueError(f"The folder {str(folder)!r} holds no weights of a model ({', '.join(WEIGHTS)}).")
    with ThreadPoolExecutor() as pool:  # hashing large pieces lets go of Python's lock
        sums = list(pool.map(_hash_file, files))
    parts: list[Any] = [[path.name, checksum] for path, checksum in zip(files, sums, strict=True)]
    adapter = folder / "adapter_config.json"
    if adapter.exists():
        settings = json.loads(adapter.read_text())
        parts.append(hash_folder(find_model(settings["base_model_name_or_path"], settings.get("revision"))))
    return digest(*parts)


def hash_files(folder: str | Path) -> str:
    """Hash all files of a folder and of those in it, by name and content."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    with ThreadPoolExecutor() as pool:
        sums = list(pool.map(_hash_file, files))
    return digest([[str(path.relative_to(folder)), checksum] for path, checksum in zip(files, sums, strict=True)])


def find_model(name: str, revision: str | None = None, further: tuple[str, ...] = ()) -> Path:
    """Return the folder of a saved model: the path itself, or where the Hub's client keeps the model, fetched first.

    Args:
        name: folder, or name on the Hub.
        revision: branch, tag or commit there; by default its main branch.
        further: patterns of files that are fetched besides weights, configuration and tokenizer.

    Raises:
        ValueError: if there is no such folder or model.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_absolute() or name.startswith((".", "~")) or len(path.parts) > 2:
        raise ValueError(f"The model folder {name!r} does not exist (looked in {Path.cwd()}). Correct the path.")
    try:
        for weights in (WEIGHTS[:1], WEIGHTS[1:]):  # the old format only where there is no other
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=[*weights, *SETTINGS, *further]))
            if any(folder.glob(pattern) for pattern in weights):
                break
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The model {name!r} is neither a folder here (looked in {Path.cwd()}) nor a model that the Hub's client "
            f"could fetch: {error}"
        ) from error
    return folder


def _hash_file(path: Path) -> str:
    real = path.resolve()
    if real.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", real.name):
        return real.name  # the Hub's cache, which checked it
    status = real.stat()
    return _hash_content(real, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1024)
def _hash_content(path: Path, size: int, changed: int) -> str:
    """Hash a file, once in a process as long as its size and its time of change stay the same."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            sha.update(piece)
    return sha.hexdigest()


def hash_module(model: torch.nn.Module) -> str:
    """Hash a model in memory: names, types, shapes and values of parameters and buffers, and its configuration."""
    total = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest(total.hexdigest(), _settings(getattr(model, "config", None)))


def _settings(config: Any) -> dict[str, Any]:
    """Return what of a configuration can change a score: not where the model was loaded from, nor by which release."""
    settings = config.to_dict() if hasattr(config, "to_dict") else {}
    return {k: v for k, v in settings.items() if k not in ("_name_or_path", "transformers_version", "dtype")}


def hash_tokenizer(tokenizer: Any) -> str:
    """Hash what decides a tokenizer's ids: vocabulary and rules, special tokens, chat template."""
    if getattr(tokenizer, "backend_tokenizer", None) is not None:
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        rules.update(truncation=None, padding=None)  # the last call's, not the tokenizer's own
    else:
        rules = tokenizer.get_vocab()
    return digest(rules, tokenizer.special_tokens_map, tokenizer.chat_template)


def hash_rows(dataset: Dataset, columns: Iterable[str]) -> str:
    """Hash the values of some columns, row by row: how the data is stored and cut up on disk is no matter."""
    columns = sorted(columns)
    total = hashlib.blake2b(digest_size=16)
    for row in dataset.with_format(None).select_columns(columns):
        total.update(json.dumps([row[name] for name in columns], sort_keys=True, default=str).encode())
        total.update(b"\n")
    return digest(columns, len(dataset), total.hexdigest())
