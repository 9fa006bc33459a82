"""SFT data as tokens and labels: exactly those that `trl.SFTTrainer` would train on, one row an example."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset, are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from tqdm.auto import tqdm
from trl import get_training_chat_template, is_conversational
from trl.chat_template_utils import has_generation_markers

from .. import _compat
from .._text import did_you_mean, listing
from .processes import world
from .token_rows import TokenRow, TokenRows

ROWS_AT_ONCE = 1024  # that are in memory while they are tokenised
TRUNCATION_MODES = ("keep_start", "keep_end")


@dataclass(frozen=True)
class SFTFormat:
    """The fields of `trl.SFTConfig` that decide tokens and labels, with TRL's defaults.

    Args:
        max_length: tokens that are kept of an example; None keeps all.
        truncation_mode: "keep_start" or "keep_end" of an example that is longer.
        completion_only_loss: learn completions only; None does so for data with `prompt` and `completion`.
        assistant_only_loss: learn the assistant's turns only; for conversations.
        dataset_text_field: column of plain text.
        eos_token: ends an example, instead of the tokenizer's own.
    """

    max_length: int | None = 1024
    truncation_mode: str = "keep_start"
    completion_only_loss: bool | None = None
    assistant_only_loss: bool = False
    dataset_text_field: str = "text"
    eos_token: str | None = None

    def __post_init__(self):
        length = self.max_length
        if length is not None and (not isinstance(length, int) or isinstance(length, bool) or length < 2):
            raise ValueError(
                f"`max_length` must be an integer of at least 2, since a token is predicted from the one before it, "
                f"but it is {length!r}."
            )
        if self.truncation_mode not in TRUNCATION_MODES:
            near = did_you_mean(self.truncation_mode, TRUNCATION_MODES)
            raise ValueError(
                f"`truncation_mode` is {self.truncation_mode!r}.{near} Known modes: {listing(TRUNCATION_MODES)}."
            )

    def content_columns(self, dataset: Dataset) -> list[str]:
        """Return the columns that decide the tokens of the examples.

        Raises:
            ValueError: if the data is no SFT data, naming its columns, or packed.
        """
        present = dataset.column_names
        if "seq_lengths" in present:
            raise ValueError(
                "The data is packed (it has a column 'seq_lengths'): a row holds several examples, with no scores of "
                "their own. Give the data as it was before packing."
            )
        for needed in (("input_ids",), ("prompt", "completion"), ("messages",), ("conversations",)):
            if set(needed) <= set(present):
                break
        else:
            needed = (self.dataset_text_field,)
            if needed[0] not in present:
                raise ValueError(self._no_content(present))
        further = ("labels", "completion_mask", "assistant_masks") if needed == ("input_ids",) else ()
        further = further or ("tools", "chat_template_kwargs")
        return [*needed, *(name for name in further if name in present)]

    def _no_content(self, present: list[str]) -> str:
        if {"chosen", "rejected"} <= set(present):
            return (
                f"The data has preference pairs (its columns: {listing(present)}), and this scores single examples. "
                "Score pairs with a reward model (--by reward), or rename the answers to learn from to 'completion'."
            )
        known = ("prompt", "completion", "messages", self.dataset_text_field)
        near = next((did_you_mean(name, known) for name in present if did_you_mean(name, known)), "")
        return (
            "SFT data has the columns 'prompt' and 'completion', or 'messages', or plain text in "
            f"{self.dataset_text_field!r} (`dataset_text_field`), but the data has none of them.{near} Its columns: "
            f"{listing(present)}. Rename them with `column_mapping` (on the command line) or `dataset.rename_columns`."
        )


def tokenize_sft(
    dataset: Dataset,
    tokenizer: Any,
    layout: SFTFormat | None = None,
    convert: Callable[[Dataset, int], Dataset] | None = None,
) -> TokenRows:
    """Return the tokens and labels of each example, as `trl.SFTTrainer` prepares it, in the data's order.

    Nothing is packed, shuffled or dropped: an example without a label token is there too, where TRL's training leaves
    it out (one of which `max_length` keeps the prompt only). A part of the data at a time is in memory.

    Args:
        dataset: prompts and completions, conversations, plain text, or `input_ids` (with `labels`, if not all learnt).
        tokenizer: the model's.
        layout: how tokens and labels are made; TRL's defaults when None.
        convert: makes SFT data of other data, from a part of it and the number of its first row; the same number of
            examples of each row, which the examples then name.

    Raises:
        ValueError: if columns or contents are missing, conversations meet a tokenizer without chat template, or
            options do not fit the data.
    """
    layout = layout or SFTFormat()
    if convert is None:
        layout.content_columns(dataset)  # says now what is missing
    if not len(dataset):
        raise ValueError("The data has no rows, so there is nothing to score. Check the file and the split.")
    world()  # TRL's preparation asks for the processes, and must find those that know each other
    return TokenRows(_tokenized(dataset.with_format(None), tokenizer, layout, convert))


def _tokenized(
    dataset: Dataset, tokenizer: Any, layout: SFTFormat, convert: Callable[[Dataset, int], Dataset] | None
) -> Iterator[TokenRow]:
    starts = range(0, len(dataset), ROWS_AT_ONCE)
    prepare = None
    quiet = len(starts) > 1 and not are_progress_bars_disabled()
    if quiet:  # else several bars a part
        disable_progress_bars()
    try:
        for start in tqdm(starts, desc="tokenizing", disable=not quiet or not world().is_main_process):
            part = dataset.select(range(start, min(start + ROWS_AT_ONCE, len(dataset))))
            numbers = np.arange(start, start + len(part))
            if convert is not None:
                part = convert(part, start)
                numbers = np.repeat(numbers, len(part) // len(numbers))
            columns = layout.content_columns(part)
            for column in columns[: 2 if columns[0] == "prompt" else 1]:
                _check_values(part, column, numbers)
            prepare = prepare or _preparation(part[0], columns[0] == "input_ids", tokenizer, layout)
            yield from _rows(prepare(part), layout, numbers)
    finally:
        if quiet:
            enable_progress_bars()


def _preparation(
    first: dict[str, Any], has_tokens: bool, tokenizer: Any, layout: SFTFormat
) -> Callable[[Dataset], Dataset]:
    """Return what tokenises parts of the data, as its first row decides."""
    template = None
    if not has_tokens:
        tokenizer = _with_eos(tokenizer, layout)
        template = _check_template(first, tokenizer, layout)
    completion_only = layout.completion_only_loss
    if completion_only is None:  # as TRL decides
        completion_only = "prompt" in first and "completion" in first

    def prepare(part: Dataset) -> Dataset:
        try:
            return _compat.prepare_sft_dataset(
                part, tokenizer, layout.dataset_text_field, completion_only, layout.assistant_only_loss, template
            )
        except RuntimeError as error:  # no assistant tokens
            raise ValueError(str(error)) from error

    return prepare


def _with_eos(tokenizer: Any, layout: SFTFormat) -> Any:
    """Return the tokenizer with the end token asked for."""
    if layout.eos_token is None:
        return tokenizer
    if layout.eos_token not in tokenizer.get_vocab():
        raise ValueError(f"`eos_token` is {layout.eos_token!r}, which is not in the tokenizer's vocabulary.")
    tokenizer = copy.deepcopy(tokenizer)  # the caller's stays as it was
    tokenizer.eos_token = layout.eos_token
    return tokenizer


def _check_values(dataset: Dataset, column: str, numbers: np.ndarray) -> None:
    for number, value in zip(numbers, dataset[column], strict=True):
        if value is None or (not isinstance(value, str) and not len(value)):
            raise ValueError(f"Row {number} of the data has an empty {column!r}: {value!r}. Remove the row.")


def _check_template(first: dict[str, Any], tokenizer: Any, layout: SFTFormat) -> str | None:
    """Return the chat template that TRL trains with instead of the tokenizer's own, or None to keep that.

    Raises:
        ValueError: if there is none where one is needed, or the data has no assistant, or no end token.
    """
    if "image" in first or "images" in first:
        raise ValueError("The data has images, which are not scored yet. Remove the rows with images.")
    chat = is_conversational(first) or "conversations" in first
    if layout.assistant_only_loss and not chat:
        raise ValueError(
            "`assistant_only_loss` is true, but the data has no conversations. Leave it out, or give `messages`."
        )
    if not chat:
        if tokenizer.eos_token is None:
            raise ValueError("The tokenizer has no end token. Set `eos_token` to one of its tokens.")
        return None
    if tokenizer.chat_template is None:
        raise ValueError(
            "The data has conversations, but the tokenizer has no chat template, so they cannot be written as the "
            "model was trained on them. Give a tokenizer with the template (a checkpoint of TRL's SFTTrainer has it), "
            "or prompts and completions of plain text."
        )
    if layout.assistant_only_loss and not has_generation_markers(tokenizer.chat_template):
        return get_training_chat_template(tokenizer)
    return None


def _rows(prepared: Dataset, layout: SFTFormat, numbers: np.ndarray) -> Iterator[TokenRow]:
    kept = slice(None)
    if layout.max_length is not None:
        start = layout.truncation_mode == "keep_start"
        kept = slice(None, layout.max_length) if start else slice(-layout.max_length, None)
    tokens = prepared.select_columns(["input_ids", "labels"]).with_format("numpy")
    for number, row in zip(numbers.tolist(), tokens, strict=True):
        ids, labels = (np.asarray(row[name], dtype=np.int64) for name in ("input_ids", "labels"))
        if len(ids) != len(labels):
            raise ValueError(f"Row {number} of the data has {len(ids)} `input_ids` and {len(labels)} `labels`.")
        yield TokenRow(ids[kept], labels[kept], number)
