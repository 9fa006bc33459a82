"""Instruction-following difficulty: how much a prompt helps a model with its answer."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset

from .._text import listing
from ..scoring import fingerprints
from ..scoring.processes import on_main
from ..scoring.saved_models import check_dtype
from ..scoring.sft_data import SFTFormat, tokenize_sft
from ..scoring.token_rows import IGNORED, TokenRow, TokenRows
from .base import Assessment, Selector
from .difficulty import UNLABELLED
from .language import log_probs, start_token
from .picking import is_number
from .work import Work

MISLEADING = "the prompt does not help"
TEMPLATE = ("tools", "chat_template_kwargs")  # columns that a chat template reads besides the messages
CONTENT = ("prompt", "completion", "messages", *TEMPLATE)  # columns that decide the tokens


@dataclass(frozen=True, kw_only=True)
class IFD(Selector):
    """Selects SFT examples whose answer stays hard although the prompt is there, arXiv 2308.12032.

        IFD = mean CE(y | x) / mean CE(y)

    Rows above 1, whose prompt makes the answer less likely, are ruled out, and the highest of the others kept; the
    paper keeps 5 to 10 %. Both means are over all tokens of the answer: alone, its first token is predicted from the
    model's start token (ours).

    Args:
        model: folder or name of a language model, whole or a LoRA adapter.
        max_length: tokens of prompt and answer that count, as in `trl.SFTConfig`; None for all.
        drop_above: the IFD above which rows are ruled out; None for no bound.
        dtype: of the weights.
        trust_remote_code: run code that comes with the model.
    """

    model: str | None = None
    max_length: int | None = 1024
    drop_above: float | None = 1.0
    dtype: str = "auto"
    trust_remote_code: bool = False

    name: ClassVar[str] = "ifd"
    model_options: ClassVar = ("model",)

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.model, str) or not self.model:
            raise ValueError(
                f"The selector 'ifd' needs a `model`, but it is {self.model!r}. Name a folder or a model of the Hub "
                'among its options: {"model": "..."}.'
            )
        SFTFormat(max_length=self.max_length)
        check_dtype(self.dtype)
        if self.drop_above is not None and (not is_number(self.drop_above) or not self.drop_above > 0):
            raise ValueError(f"`drop_above` must be above 0, but it is {self.drop_above!r}.")

    def assess(self, dataset: Dataset, work: Work) -> Assessment:
        """Return both losses of each example, in nats a token, and their ratio."""
        prompts_and_completions(dataset.select([0]))  # says now what is missing
        columns = [name for name in dataset.column_names if name in CONTENT]
        content = on_main(lambda: fingerprints.hash_rows(dataset, columns))
        with work.timed("ifd"):
            sums, tokens = log_probs(
                "ifd",
                self.model,
                lambda tokenizer: TokenRows(self._rows(dataset, tokenizer)),
                np.repeat(np.arange(len(dataset)), 2),
                (content, self.max_length, 2),  # 2: with what templates read besides messages
                work,
                self.dtype,
                self.trust_remote_code,
            )
        labelled = tokens[::2] > 0
        if not labelled.any():
            raise ValueError(
                f"No example has a token of its answer within `max_length` ({self.max_length}). Raise it, or check "
                "the completions."
            )
        given, alone = (-sums[part::2] / np.maximum(tokens[part::2], 1) for part in (0, 1))
        ratio = np.where(labelled & (alone > 0), given / np.where(alone > 0, alone, 1.0), 0.0)
        ratio, given, alone = (np.where(labelled, values, np.nan) for values in (ratio, given, alone))
        found = Assessment({"ifd": ratio, "loss_with_prompt": given, "loss_alone": alone, "score": ratio})
        if not labelled.all():
            found.ruled_out[UNLABELLED] = ~labelled
        if self.drop_above is not None:
            found.ruled_out[MISLEADING] = ratio > self.drop_above
        return found

    def _rows(self, dataset: Dataset, tokenizer: Any) -> Iterator[TokenRow]:
        """Yield each example with its prompt, and its answer alone. 2 n rows"""
        start = start_token(tokenizer)
        layout = SFTFormat(max_length=self.max_length)
        for row in tokenize_sft(dataset, tokenizer, layout, prompts_and_completions):
            answer = row.input_ids[row.labels != IGNORED]
            answer = answer if row.labels[0] == IGNORED else answer[1:]  # what is predicted with the prompt
            alone = np.concatenate([[start], answer]).astype(np.int64)
            yield row
            yield TokenRow(alone, np.concatenate([[IGNORED], answer]).astype(np.int64), row.row)


def prompts_and_completions(dataset: Dataset, first: int = 0) -> Dataset:
    """Return SFT data as `prompt` and `completion`; of messages, the last answer is the completion.

    What chat templates read besides, `tools` and `chat_template_kwargs`, stays.

    Args:
        dataset: the data, or a part of it.
        first: number of its first row, for messages.

    Raises:
        ValueError: if the data has neither these columns nor messages that end with an answer.
    """
    present = dataset.column_names
    if {"prompt", "completion"} <= set(present):
        return dataset
    if "messages" not in present:
        raise ValueError(
            "The data has no prompts with answers: it needs 'prompt' and 'completion', or 'messages'. Its columns: "
            f"{listing(present)}."
        )
    rows, further = [], [name for name in TEMPLATE if name in present]
    for number, row in enumerate(dataset.with_format(None).select_columns(["messages", *further]), first):
        messages = row["messages"]
        if len(messages) < 2 or messages[-1]["role"] != "assistant":
            raise ValueError(f"The messages of row {number} of the data do not end with an answer to a prompt.")
        rows.append({"prompt": messages[:-1], "completion": messages[-1:], **{name: row[name] for name in further}})
    return Dataset.from_list(rows)
