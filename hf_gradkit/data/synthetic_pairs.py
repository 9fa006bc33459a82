"""Synthetic preference pairs whose true reward is known, in words that a tokenizer trained on the spot can take whole.

A prompt names a subject ("Describe the old knife."), a completion is a list of words (" sharp very kind not dull"),
and the true reward values the words, some of them by the subject. Pairs are labelled by Bradley-Terry from the true
reward, so some labels are wrong by chance, and how far apart the two completions truly are is known for each.
"""

import math
import random
from typing import Any

QUALITIES = ("high", "medium", "low")
SPLITS = ("train", "test")

# What a word is worth, whatever the prompt.
_VALUES = {
    **dict.fromkeys("bright clean kind lovely proud superb".split(), 1.0),  # noqa: SIM905
    **dict.fromkeys("calm fresh neat smart tidy young".split(), 0.5),  # noqa: SIM905
    **dict.fromkeys("late loose odd plain stiff thin".split(), -0.5),  # noqa: SIM905
    **dict.fromkeys("broken dirty dull grim poor ugly".split(), -1.0),  # noqa: SIM905
    **dict.fromkeys("common flat local round square usual".split(), 0.0),  # noqa: SIM905
}
# Worth 1 or -1 for subjects that care, as `_LIKES` says, and nothing for the others.
_OPPOSITES = {"sharp": "soft", "hot": "cold", "loud": "quiet", "fast": "slow", "heavy": "light"}
_OPPOSITES |= {second: first for first, second in _OPPOSITES.items()}
_LIKES = {
    "knife": ("sharp", "light"),
    "pillow": ("soft", "quiet"),
    "tea": ("hot", "slow"),
    "lemonade": ("cold", "sharp"),
    "drum": ("loud", "heavy"),
    "library": ("quiet", "slow"),
    "horse": ("fast", "light"),
    "anvil": ("heavy", "loud"),
    "oven": ("hot", "fast"),
    "blanket": ("soft", "heavy"),
}
_WORDS = [*_VALUES, *_OPPOSITES]
_FACTORS = {"very": 1.5, "not": -1.0}  # of the word that follows
_OPENINGS = ("Describe the", "Tell me about the")
_KINDS = "old new big small red blue".split()  # noqa: SIM905
_LONGEST, _LENGTH_COST, _REPETITION_COST = 10, 0.5, 1.0
_NEGATIVE_TILT = 1.0


def prompts(split: str = "train") -> list[str]:
    """Return the prompts of a split: 96 to train on, and 24 others that ask the same of other kinds of the subjects.

    Raises:
        ValueError: for an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"`split` must be one of {list(SPLITS)}, but it is {split!r}.")
    every = [f"{opening} {kind} {subject}." for opening in _OPENINGS for subject in _LIKES for kind in _KINDS]
    # The step of 5 and the 6 kinds share no factor, so that every subject and every kind is in both splits.
    return [prompt for i, prompt in enumerate(every) if (i % 5 == 0) == (split == "test")]


def true_reward(prompt: str, completion: str) -> float:
    """Return what a completion is truly worth.

    The sum over its words of their value, times 1.5 after "very" and -1 after "not". A word that was there before is
    worth -1 instead, and every word beyond the tenth costs 0.5. A word is worth 1, 0.5, 0, -0.5 or -1, ten words
    ("sharp", "soft", ...) are worth 1 or -1 for two or four of the ten subjects and 0 for the rest, and "very", "not"
    and unknown words are worth 0 and may be repeated. [`base_rows`] never repeats a word, so a reward model trained
    on pairs has not seen what repetition costs: a policy that follows it too far pays for it.

    >>> true_reward("Describe the old knife.", " sharp very kind not dull")  # 1 + 1.5 + 1
    3.5
    >>> true_reward("Describe the old pillow.", " sharp kind kind")  # -1 + 1 - 1
    -1.0

    Raises:
        ValueError: if the prompt names no known subject.
    """
    subject = next((word for word in prompt.rstrip(" .").split() if word in _LIKES), None)
    if subject is None:
        raise ValueError(f"The prompt {prompt!r} names none of the subjects {list(_LIKES)}.")
    words = completion.split()
    total, seen, factor = 0.0, set(), 1.0
    for word in words:
        if word in seen:
            total -= _REPETITION_COST
        else:
            total += factor * _value(word, subject)
        if word in _WORDS:
            seen.add(word)
        factor = _FACTORS.get(word, 1.0)
    return total - _LENGTH_COST * max(0, len(words) - _LONGEST)


def base_rows(n: int, seed: int = 0) -> list[dict[str, str]]:
    """Return rows with columns `prompt` and `completion` for supervised training of a policy.

    A completion has 4 to 9 words, drawn without repetition and without regard to their value, a tenth of them after
    "very" and a tenth after "not": the policy learns to write, and nothing of the reward.

    Raises:
        ValueError: if `n` is below 1.
    """
    rng = _generator(n, seed, "base")
    return [{"prompt": prompt, "completion": _draw(prompt, rng)} for prompt in rng.choices(prompts(), k=n)]


def preference_rows(
    n: int,
    seed: int = 0,
    quality: str = "high",
    label_temperature: float = 1.0,
    split: str = "train",
) -> list[dict[str, Any]]:
    """Return preference pairs with columns `prompt`, `chosen`, `rejected` and `true_margin`.

    `true_margin` is the true reward of the chosen completion minus that of the rejected one, below 0 where the label
    is wrong. Of a pair with rewards r and r' the first is chosen with probability sigmoid((r - r') / temperature).

    The qualities are those of the MADPO paper's experiment (arXiv 2510.05342) as its published code makes them, with
    word lists for film reviews: `high` has two completions of the base process, as the paper has two samples of the
    policy; in `low` one is the better of two such completions, and the other comes from elsewhere, here from a
    process that prefers bad words, there from negative reviews by people; `medium` is half and half. Pairs of low
    quality are thus easy, far apart, and half off the policy.

    Args:
        n: number of pairs.
        seed: seed of the draw; the true reward is the same for every seed.
        quality: "high", "medium" or "low".
        label_temperature: noise of the labels, above 0; small is little noise.
        split: whose prompts, "train" or "test".

    Raises:
        ValueError: for an unknown quality or split, `n` below 1, or a temperature that is not above 0 and finite.
    """
    if quality not in QUALITIES:
        raise ValueError(f"`quality` must be one of {list(QUALITIES)}, but it is {quality!r}.")
    if not 0 < label_temperature < math.inf:
        raise ValueError(f"`label_temperature` must be above 0 and finite, but it is {label_temperature}.")
    rng = _generator(n, seed, f"pairs-{quality}-{split}")
    easy = {"high": 0, "medium": n // 2, "low": n}[quality]
    rows = []
    for i, prompt in enumerate(rng.choices(prompts(split), k=n)):
        first, second = _draw(prompt, rng), _draw(prompt, rng)
        if i < easy:
            if true_reward(prompt, second) > true_reward(prompt, first):
                first = second
            second = _draw(prompt, rng, tilt=-_NEGATIVE_TILT)
        rows.append(_label(prompt, first, second, label_temperature, rng))
    rng.shuffle(rows)
    return rows


def edited_rows(n: int, seed: int = 0, split: str = "train") -> list[dict[str, Any]]:
    """Return preference pairs that differ in one word, with columns `prompt`, `chosen`, `rejected`, `true_margin`.

    The chosen completion is of the base process, and the rejected one is the same but for one word, replaced by one
    that makes it truly worse: every label is right, and `true_margin` is above 0. Pairs that share most of their
    tokens are what a correction, or a corrupted copy, of an answer gives; their gradients point nearly the same way.

    Args:
        n: number of pairs.
        seed: seed of the draw; the true reward is the same for every seed.
        split: whose prompts, "train" or "test".

    Raises:
        ValueError: for an unknown split or `n` below 1.
    """
    rng = _generator(n, seed, f"edits-{split}")
    rows: list[dict[str, Any]] = []
    while len(rows) < n:
        prompt = rng.choice(prompts(split))
        chosen = _draw(prompt, rng)
        words = chosen.split()
        words[rng.randrange(len(words))] = rng.choice(_WORDS)
        rejected = " " + " ".join(words)
        margin = true_reward(prompt, chosen) - true_reward(prompt, rejected)
        if margin > 0:
            rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected, "true_margin": margin})
    return rows


def _label(prompt: str, first: str, second: str, temperature: float, rng: random.Random) -> dict[str, Any]:
    """Draw which of two completions is chosen, by Bradley-Terry."""
    margin = true_reward(prompt, first) - true_reward(prompt, second)
    # tanh, and not 1 / (1 + exp), because it cannot overflow
    if rng.random() >= 0.5 * (1 + math.tanh(0.5 * margin / temperature)):
        first, second, margin = second, first, -margin
    return {"prompt": prompt, "chosen": first, "rejected": second, "true_margin": margin}


def _value(word: str, subject: str) -> float:
    if word in _LIKES[subject]:
        return 1.0
    if _OPPOSITES.get(word) in _LIKES[subject]:
        return -1.0
    return _VALUES.get(word, 0.0)


def _draw(prompt: str, rng: random.Random, tilt: float = 0.0) -> str:
    """Draw a completion; words are drawn without repetition in proportion to exp(tilt * value)."""
    subject = prompt.rstrip(".").split()[-1]
    # The largest of u^(1/weight), u uniform, are a weighted draw without replacement (Efraimidis and Spirakis, 2006).
    keys = {word: rng.random() ** math.exp(-tilt * _value(word, subject)) for word in _WORDS}
    words = []
    for word in sorted(keys, key=keys.__getitem__, reverse=True)[: rng.randint(4, 9)]:
        words += rng.choices([[], ["very"], ["not"]], weights=[8, 1, 1])[0]
        words.append(word)
    return " " + " ".join(words)


def _generator(n: int, seed: int, purpose: str) -> random.Random:
    if n < 1:
        raise ValueError(f"`n` is a number of rows and must be at least 1, but it is {n}.")
    # A string seed is hashed the same way on every machine; the purpose keeps the data sets of one seed apart.
    return random.Random(f"{purpose}-{seed}")
