"""Synthetic pairs: the reward is the documented one, labels are Bradley-Terry's, qualities differ as they should."""

import doctest
import math
import statistics

import pytest

from hf_gradkit.data import synthetic_pairs
from hf_gradkit.data.synthetic_pairs import QUALITIES, base_rows, preference_rows, prompts, true_reward
from hf_gradkit.data.tiny import train_tokenizer

KNIFE, PILLOW = "Describe the old knife.", "Tell me about the red pillow."


def test_docstring_examples():
    result = doctest.testmod(synthetic_pairs)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize(
    ("prompt", "completion", "reward"),
    [
        (KNIFE, "", 0.0),
        (KNIFE, " superb", 1.0),
        (KNIFE, " not superb", -1.0),
        (KNIFE, " very grim", -1.5),
        (KNIFE, " very very superb", 1.5),
        (KNIFE, " sharp", 1.0),
        (PILLOW, " sharp", -1.0),
        ("Describe the old tea.", " sharp", 0.0),
        (KNIFE, " kind kind kind", -1.0),
        (KNIFE, " kind not kind", 0.0),
        (KNIFE, " xyzzy xyzzy kind", 1.0),
        (KNIFE, " common flat local round square usual hot cold loud quiet kind", 0.5),
    ],
)
def test_true_reward(prompt, completion, reward):
    assert true_reward(prompt, completion) == reward


def test_every_subject_and_kind_is_in_both_splits():
    train, test = prompts("train"), prompts("test")
    assert (len(train), len(test)) == (96, 24)
    assert not set(train) & set(test)
    for position in (-1, -2):
        assert {p.split()[position] for p in train} == {p.split()[position] for p in test}


@pytest.mark.parametrize("quality", QUALITIES)
def test_pairs_are_deterministic_and_consistent(quality):
    rows = preference_rows(40, seed=3, quality=quality)
    assert rows == preference_rows(40, seed=3, quality=quality)
    assert rows != preference_rows(40, seed=4, quality=quality)
    for row in rows:
        assert list(row) == ["prompt", "chosen", "rejected", "true_margin"]  # `margin` would be TRL's loss margin
        truth = true_reward(row["prompt"], row["chosen"]) - true_reward(row["prompt"], row["rejected"])
        assert row["true_margin"] == truth
        assert row["prompt"] in prompts("train")


def test_base_rows_write_without_repetition_and_without_regard_to_the_reward():
    rows = base_rows(2000, seed=1)
    assert rows == base_rows(2000, seed=1)
    for row in rows:
        words = [word for word in row["completion"].split() if word not in ("very", "not")]
        assert 4 <= len(words) == len(set(words)) <= 9
    rewards = [true_reward(**row) for row in rows]
    assert abs(statistics.fmean(rewards)) < 4 * statistics.stdev(rewards) / math.sqrt(len(rewards)) + 0.1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_labels_follow_bradley_terry(temperature):
    rows = preference_rows(6000, seed=0, label_temperature=temperature)
    for low, high in ((0, 1), (1, 2), (2, 4)):
        inside = [row["true_margin"] for row in rows if low < abs(row["true_margin"]) <= high]
        expected = [1 / (1 + math.exp(-abs(margin) / temperature)) for margin in inside]
        right = statistics.fmean(margin > 0 for margin in inside)
        error = math.sqrt(sum(p * (1 - p) for p in expected)) / len(inside)
        assert abs(right - statistics.fmean(expected)) < 4 * error


def test_a_small_temperature_makes_no_wrong_label():
    assert all(row["true_margin"] >= 0 for row in preference_rows(300, label_temperature=1e-6, quality="medium"))


def test_low_quality_is_easier_and_medium_half_of_it():
    sizes = {
        quality: statistics.fmean(abs(row["true_margin"]) for row in preference_rows(2000, quality=quality))
        for quality in QUALITIES
    }
    assert sizes["high"] < sizes["medium"] < sizes["low"]
    assert sizes["medium"] == pytest.approx((sizes["high"] + sizes["low"]) / 2, rel=0.08)


def test_words_are_single_tokens():
    rows = base_rows(1000, seed=0)
    tokenizer = train_tokenizer([row["prompt"] + row["completion"] for row in rows], 512)
    lengths = [len(tokenizer(row["completion"])["input_ids"]) for row in rows]
    assert lengths == [len(row["completion"].split()) for row in rows]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: preference_rows(4, quality="best"), "`quality` must be one of"),
        (lambda: preference_rows(4, label_temperature=0.0), "`label_temperature` must be above 0"),
        (lambda: preference_rows(4, label_temperature=math.nan), "`label_temperature` must be above 0"),
        (lambda: preference_rows(4, split="dev"), "`split` must be one of"),
        (lambda: preference_rows(0), "must be at least 1"),
        (lambda: base_rows(-1), "must be at least 1"),
        (lambda: true_reward("Describe the old door.", " kind"), "names none of the subjects"),
    ],
)
def test_bad_options(call, words):
    with pytest.raises(ValueError, match=words):
        call()
