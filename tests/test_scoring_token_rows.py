"""Tokens in a file: the same ones, a part of the data at a time, and rows named as the user knows them."""

import numpy as np
import pytest
from datasets import Dataset

from difficulty_helpers import sft_data
from hf_gradkit.scoring import sft_data as module
from hf_gradkit.scoring.sft_data import SFTFormat, tokenize_sft
from hf_gradkit.scoring.token_rows import TokenFile, TokenRow, TokenRows, hash_token_rows
from hf_gradkit.selection.ifd import prompts_and_completions
from hf_gradkit.selection.language import answers
from pairs import pair_dataset


def test_sequences_come_back(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    sequences = [np.arange(3), np.zeros(0, dtype=np.int64), np.array([7, 2**31 - 1])]
    file = TokenFile(iter(sequences))
    assert [ids.tolist() for ids in file] == [ids.tolist() for ids in sequences]
    assert [ids.tolist() for ids in file[-2:]] == [[], [7, 2**31 - 1]]
    assert file[0].dtype == np.int64
    assert len(TokenFile([])) == 0
    assert list((tmp_path / "cache").iterdir()) == []  # a file without a name goes with its last reader
    with pytest.raises(IndexError):
        file[3]


def test_rows_come_back_and_can_be_chosen():
    rows = [TokenRow(np.arange(n + 1), np.where(np.arange(n + 1) < n, -100, 5), 10 + n) for n in range(4)]
    file = TokenRows(iter(rows))
    assert hash_token_rows(file) == hash_token_rows(rows)
    assert file.numbers.tolist() == [10, 11, 12, 13]
    assert file.label_tokens.tolist() == [row.label_tokens for row in rows] == [0, 1, 1, 1]
    chosen = file.labelled()
    assert [row.row for row in chosen] == chosen.numbers.tolist() == [11, 12, 13]
    assert hash_token_rows(chosen) == hash_token_rows(rows[1:]) == hash_token_rows(file[1:])


@pytest.mark.parametrize("kind", ["prompt-completion", "chat", "text"])
def test_parts_make_the_same_rows(kind, tokenizer, monkeypatch):
    data = sft_data(kind, 13)
    whole = tokenize_sft(data, tokenizer)
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 5)
    parts = tokenize_sft(data, tokenizer)
    assert hash_token_rows(parts) == hash_token_rows(whole)
    assert parts.numbers.tolist() == list(range(13))


def test_parts_of_pairs_and_messages_make_the_same_rows(tokenizer, monkeypatch):
    pairs, chats = pair_dataset(11, "prompt"), sft_data("chat", 11)
    whole = [tokenize_sft(answers(pairs), tokenizer), tokenize_sft(prompts_and_completions(chats), tokenizer)]
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 4)
    parts = [
        tokenize_sft(pairs, tokenizer, None, answers),
        tokenize_sft(chats, tokenizer, None, prompts_and_completions),
    ]
    assert [hash_token_rows(rows) for rows in parts] == [hash_token_rows(rows) for rows in whole]
    assert parts[0].numbers.tolist() == [i // 2 for i in range(22)]  # the pairs


def test_mistakes_in_a_later_part_name_their_row(tokenizer, monkeypatch):
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 4)
    rows = sft_data("prompt-completion", 12).to_list()
    rows[9]["completion"] = None
    with pytest.raises(ValueError, match="Row 9 of the data has an empty 'completion'"):
        tokenize_sft(Dataset.from_list(rows), tokenizer)
    chats = sft_data("chat", 12).to_list()
    chats[10]["messages"] = chats[10]["messages"][:1]
    with pytest.raises(ValueError, match="The messages of row 10 of the data do not end with an answer"):
        tokenize_sft(Dataset.from_list(chats), tokenizer, SFTFormat(), prompts_and_completions)
