"""Whether data are conversations, as the trainers record it."""

import pytest
from datasets import Dataset, IterableDataset

from hf_gradkit.data.conversations import holds_conversations

MESSAGES = [{"role": "user", "content": "a"}]
CASES = [
    ({"prompt": ["a"], "completion": ["b"]}, False),
    ({"text": ["a"]}, False),
    ({"chosen": ["a"], "rejected": ["b"]}, False),
    ({"messages": [MESSAGES]}, True),
    ({"conversations": [[{"from": "human", "value": "a"}]]}, True),
    ({"prompt": [MESSAGES], "chosen": [MESSAGES], "rejected": [MESSAGES]}, True),
    ({"messages": [[]]}, False),  # the trainer says what is wrong with it
    ({"input_ids": [[1, 2]]}, None),
    ({"prompt": []}, None),
]


@pytest.mark.parametrize(("rows", "holds"), CASES)
def test_rows(rows, holds):
    assert holds_conversations(Dataset.from_dict(rows)) is holds


def test_a_stream_is_not_read():
    def rows():
        raise AssertionError("a row was read")
        yield

    assert holds_conversations(IterableDataset.from_generator(rows)) is None
