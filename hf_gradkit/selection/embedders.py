"""Embeddings of prompts by models: mean-pooled hidden states of any transformers model, or sentence-transformers."""

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModel, AutoTokenizer

from .._compat import whole_models
from .._text import check_whole_number
from ..scoring import fingerprints
from ..scoring.processes import on_main
from ..scoring.saved_models import check_dtype, position_limit
from ..scoring.token_rows import TokenFile
from .components import Component
from .language import token_ids
from .tfidf import HashedTfidf
from .work import Work

# What sentence-transformers reads besides weights and tokenizer: lists and settings of its modules.
SENTENCE_SETTINGS = ("*.json", "*.txt")


@dataclass(frozen=True)
class HiddenStates(Component):
    """Embeds prompts by the last hidden states of a transformers model, averaged over the tokens, of length 1.

    Args:
        model: folder or name of the model.
        max_length: tokens that are read of a prompt; the rest is cut off. By default 512, or the model's limit.
        dtype: of the weights.
        trust_remote_code: run code that comes with the model.
    """

    model: str | None = None
    max_length: int = 512
    dtype: str = "auto"
    trust_remote_code: bool = False

    model_options: ClassVar = ("model",)

    def __post_init__(self):
        check_model(self.model, "embedder", "transformers")
        check_dtype(self.dtype)
        check_whole_number("max_length", self.max_length, 1)

    def check(self, dataset: Dataset) -> None:
        """Raise `ValueError` where there is no such model."""
        find_models(self.model)

    def of_dataset(self, dataset: Dataset, work: Work) -> np.ndarray:
        """Return the embedding of each row's prompt. (n, d) float32"""
        prompts = work.prompts(dataset)
        folder = fingerprints.find_model(self.model)

        @contextmanager
        def make():
            options = {"trust_remote_code": self.trust_remote_code}
            tokenizer = AutoTokenizer.from_pretrained(str(folder), **options)
            with whole_models():
                model = AutoModel.from_pretrained(str(folder), dtype=self.dtype, **options).eval().to(work.device)
            limit = min(self.max_length, position_limit(model) or self.max_length)
            sequences = TokenFile(token_ids(prompts.texts, tokenizer, truncation=True, max_length=limit))
            yield sequences, PoolingScorer(model, pad_of(tokenizer))

        content = on_main(lambda: fingerprints.hash_folder(folder))
        identity = (content, self.max_length, self.dtype, prompts.fingerprint)
        found = work.score(
            "hidden_states", identity, ("embedding",), len(prompts), make, rows=prompts.rows, unit="prompt"
        )
        return found["embedding"][prompts.of_row]


class PoolingScorer:
    """Embeds token sequences, padded on the right.

    Args:
        model: returns `last_hidden_state`; in evaluation mode, on its device.
        pad_token_id: fills up the batch; what it is does not matter.
    """

    columns = ("embedding",)

    def __init__(self, model: Any, pad_token_id: int):
        self.model, self.pad_token_id = model, pad_token_id

    def length(self, item: np.ndarray) -> int:
        """Return the number of tokens."""
        return len(item)

    @torch.inference_mode()
    def score(self, items: list[np.ndarray]) -> dict[str, np.ndarray]:
        """Return the mean hidden state of each sequence, of length 1. (n, d) float32"""
        lengths = torch.tensor([len(ids) for ids in items])
        mask = (torch.arange(int(lengths.max())) < lengths[:, None]).to(self.model.device)  # (n, T)
        rows = [torch.from_numpy(ids) for ids in items]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.pad_token_id)
        outputs = self.model(input_ids=ids.to(self.model.device), attention_mask=mask.long())
        states = outputs.last_hidden_state.float() * mask[:, :, None]  # (n, T, d)
        means = states.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        return {"embedding": torch.nn.functional.normalize(means, dim=1).cpu().numpy()}


@dataclass(frozen=True)
class SentenceTransformers(Component):
    """Embeds prompts by a sentence-transformers model, with length 1. Needs `pip install "hf-gradkit[embeddings]"`.

    Args:
        model: folder or name of the model, such as `"sentence-transformers/all-MiniLM-L6-v2"`.
        revision: branch, tag or commit of a model of the Hub; by default its main branch.
        trust_remote_code: run code that comes with the model.
    """

    model: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self):
        check_model(self.model, "embedder", "sentence_transformers")

    def models(self) -> dict[str, str]:
        """Return name and short hash of the model: of all its files, among which are modules in folders."""
        return {"model": f"{self.model}@{self._content(self._folder())[: fingerprints.SHORT]}"}

    def check(self, dataset: Dataset) -> None:
        """Raise `ImportError` where the library is not installed, and `ValueError` where there is no such model."""
        self._folder()

    def _folder(self) -> Path:
        _library()  # before a model is fetched
        return fingerprints.find_model(self.model, self.revision, SENTENCE_SETTINGS)

    @staticmethod
    def _content(folder: Path) -> str:
        # Known by its files, as every model is: what a name of the Hub stands for can change.
        return on_main(lambda: fingerprints.hash_files(folder))

    def of_dataset(self, dataset: Dataset, work: Work) -> np.ndarray:
        """Return the embedding of each row's prompt. (n, d) float32"""
        library = _library()
        prompts = work.prompts(dataset)
        folder = self._folder()
        identity = (self._content(folder), prompts.fingerprint)

        @contextmanager
        def make():
            options = {"device": str(work.device), "trust_remote_code": self.trust_remote_code}
            yield prompts.texts, _SentenceScorer(library.SentenceTransformer(str(folder), **options))

        found = work.score(
            "sentence_transformers", identity, ("embedding",), len(prompts), make, rows=prompts.rows, unit="prompt"
        )
        return found["embedding"][prompts.of_row]


def _library() -> Any:
    try:
        import sentence_transformers
    except ImportError as error:
        raise ImportError(
            "`embedder` is 'sentence_transformers', which is not installed: pip install "
            '"hf-gradkit[embeddings]". Without it, use {"by": "transformers", "model": ...} or "tfidf".'
        ) from error
    return sentence_transformers


class _SentenceScorer:
    columns = ("embedding",)

    def __init__(self, model: Any):
        self.model = model

    def length(self, item: str) -> int:
        return len(item)

    def score(self, items: list[str]) -> dict[str, np.ndarray]:
        found = self.model.encode(
            items, batch_size=len(items), normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
        )
        return {"embedding": found.astype(np.float32)}


def check_model(model: Any, role: str, name: str) -> None:
    """Raise `ValueError` unless a model is named."""
    if not isinstance(model, str) or not model:
        raise ValueError(
            f"`{role}` is {name!r}, which needs a `model`, but it is {model!r}. Name a folder or a model of the Hub: "
            f'{{"by": "{name}", "model": "..."}}.'
        )


def find_models(*models: str) -> None:
    """Raise `ValueError` for the first model that is neither a folder nor fetched from the Hub; fetch it there."""
    for model in models:
        fingerprints.find_model(model)


def pad_of(tokenizer: Any) -> int:
    """Return a token to fill batches up with, where it is masked: any will do."""
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((token for token in known if token is not None), 0)


EMBEDDERS: dict[str, type] = {
    "tfidf": HashedTfidf,
    "transformers": HiddenStates,
    "sentence_transformers": SentenceTransformers,
}
