"""Lengths of answers, which `length` selects by and every report shows: of the answer alone, whatever its format."""

import pytest
from datasets import Dataset

from hf_gradkit.selection import Length
from hf_gradkit.selection.summary import lengths
from pairs import KINDS, make_pairs

N = 12


def shorter_with_longer_prompt() -> list[tuple[str, str]]:
    """Return prompts and answers: the longer the answer, the shorter both together."""
    return [("p" + "word " * (3 * (N - i)), "a" * (i + 1)) for i in range(N)]


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_of_pairs_are_those_of_the_answers(kind):
    expected = make_pairs(N, "prompt")
    found = lengths(Dataset.from_list(make_pairs(N, kind)))
    exact = kind != "plain"  # where the prompt is what the answers begin with alike, which may reach into them
    for side in ("chosen", "rejected"):
        characters = [len(row[side]) for row in expected]
        assert exact == (found[f"{side}_length"].tolist() == characters)
        assert (found[f"{side}_length"] <= characters).all()


def conversation(prompt: str, answer: str) -> list[dict]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


FORMS = {
    "conversations": lambda p, a: {"chosen": conversation(p, a), "rejected": conversation(p, "x" * 99)},
    "text": lambda p, a: {"chosen": p.strip() + a, "rejected": p.strip() + "x" * 99},
    "a prompt that is a copy": lambda p, a: {
        "prompt": p,
        "chosen": conversation(p, a),
        "rejected": conversation(p, "x" * 99),
    },
    "messages": lambda p, a: {"messages": conversation(p, a)},
    "messages, the last turn": lambda p, a: {"messages": conversation(p, "x" * 99) + conversation(p, a)},
    "prompt and completion": lambda p, a: {"prompt": p, "completion": a},
    "messages apart": lambda p, a: {"prompt": conversation(p, a)[:1], "completion": conversation(p, a)[1:]},
}


@pytest.mark.parametrize("form", FORMS)
def test_the_longest_answers_and_not_the_longest_prompts(form):
    rows = [FORMS[form](prompt, answer) for prompt, answer in shorter_with_longer_prompt()]
    result = Length(count=3).select(Dataset.from_list(rows))
    assert result.kept.tolist() == [N - 3, N - 2, N - 1]
    assert result.scores["score"] == [i + 1 for i in range(N)]
    name = "chosen_length" if "chosen" in rows[0] else "length"
    assert result.report["figures"][name]["kept"]["mean"] == N - 1
    assert Length(count=1, prefer="short").select(Dataset.from_list(rows)).kept.tolist() == [0]


def test_messages_without_an_answer_have_none():
    rows = [{"messages": conversation("a", "abc")}, {"messages": conversation("ab", "")[:1]}]
    assert lengths(Dataset.from_list(rows))["length"].tolist() == [3, 0]
    assert lengths(Dataset.from_list([{"prompt": "a", "completion": None}]))["length"].tolist() == [0]
