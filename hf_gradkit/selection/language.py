"""What a language model says of texts and answers: summed log-probabilities, through the scoring engine."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from ..scoring import fingerprints
from ..scoring.language_models import check_rows, load_language_model
from ..scoring.pairs import content_columns, parts_of
from ..scoring.processes import on_main
from ..scoring.saved_models import load_tokenizer
from ..scoring.token_rows import TokenRow, TokenRows
from ..scoring.tokens import token_statistics
from .work import Work

COLUMNS = ("log_prob", "tokens")


def log_probs(
    name: str,
    model: str,
    rows: Callable[[Any], TokenRows],
    belonging: Sequence[int],
    identity: tuple,
    work: Work,
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the log-probability of the label tokens of rows, summed, in nats, and how many they are. (m,) each

    Args:
        name: of the scores' folder, for people.
        model: folder or name of a language model, whole or a LoRA adapter.
        rows: makes the m rows from the model's tokenizer.
        belonging: the row of the data set that each belongs to. (m,)
        identity: what the rows depend on, besides the tokenizer.
        work: keeps the scores.
        dtype: of the weights.
        trust_remote_code: run code that comes with the model.
    """
    content = on_main(lambda: fingerprints.hash_folder(fingerprints.find_model(model)))

    @contextmanager
    def make() -> Iterator[tuple]:
        tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
        made = rows(tokenizer)
        loaded = load_language_model(model, dtype, trust_remote_code=trust_remote_code).to(work.device)
        check_rows(made, loaded)
        with token_statistics(loaded) as statistics:
            yield made, _SumScorer(statistics)

    found = work.score(
        name, (content, dtype, *identity), COLUMNS, len(belonging), make, rows=belonging, unit="sequence"
    )
    return found["log_prob"], found["tokens"]


class _SumScorer:
    columns = COLUMNS

    def __init__(self, statistics: Callable):
        self._statistics = statistics

    def length(self, item: TokenRow) -> int:
        return len(item)

    @torch.inference_mode()
    def score(self, items: list[TokenRow]) -> dict[str, np.ndarray]:
        found = self._statistics(items)
        sums = (found.log_probs.double() * found.mask).sum(1)
        return {"log_prob": sums.cpu().numpy(), "tokens": found.mask.sum(1).cpu().numpy()}


def start_token(tokenizer: Any) -> int:
    """Return the token that a text's first token is predicted from: the start token, or else the end token.

    Raises:
        ValueError: if the tokenizer has neither.
    """
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise ValueError(
        "The tokenizer has neither a start nor an end token, from which the first token of a text would be predicted. "
        "Set `tokenizer.eos_token` and save it with the model."
    )


def text_rows(texts: list[str], tokenizer: Any, max_length: int, numbers: np.ndarray) -> TokenRows:
    """Return texts as rows whose every token is predicted, the first one from a start or end token.

    Args:
        texts: m of them.
        tokenizer: the model's.
        max_length: tokens that are kept of a text.
        numbers: the row of the user's data that each text is from, for messages. (m,)
    """
    start = start_token(tokenizer)

    def rows() -> Iterator[TokenRow]:
        for number, ids in zip(numbers.tolist(), token_ids(texts, tokenizer), strict=True):
            ids = ids if ids and ids[0] == start else [start, *ids]
            ids = np.array(ids[:max_length], dtype=np.int64)
            yield TokenRow(ids, ids, number)

    return TokenRows(rows())


def token_ids(texts: list[str], tokenizer: Any, **options: Any) -> Iterator[list[int]]:
    """Yield the tokens of each text, of a space for an empty one, from a tokenizer that gets some at a time."""
    for start in range(0, len(texts), 1024):
        yield from tokenizer([text or " " for text in texts[start : start + 1024]], **options)["input_ids"]


def answers(dataset: Dataset, first: int = 0) -> Dataset:
    """Return the answers of pairs as SFT data, `prompt` and `completion`: the chosen one of each pair, then the other.

    2 n rows; the prompt of a pair without that column is what its answers begin with alike.

    Args:
        dataset: the pairs, or a part of them.
        first: number of the first pair, for messages.

    Raises:
        ValueError: for a conversation of which nothing comes before the answers.
    """
    further = [name for name in ("tools", "chat_template_kwargs") if name in dataset.column_names]
    made: list[dict[str, Any]] = []
    for number, row in enumerate(dataset.with_format(None).select_columns(content_columns(dataset)), first):
        prompt, *completions = parts_of(row)
        if not isinstance(prompt, str) and not prompt:
            raise ValueError(
                f"Row {number} of the data has no prompt: its 'chosen' and 'rejected' messages do not begin alike, "
                "and there is no 'prompt' beside them. Give the messages before the answers, or remove the row."
            )
        for completion in completions:
            made.append({"prompt": prompt, "completion": completion, **{name: row[name] for name in further}})
    return Dataset.from_list(made)
