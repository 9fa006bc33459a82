"""Synthetic instruction data whose truth is known: which rows teach something, which repeat it, which are noise."""

import random
from typing import Any

SOURCES = ("useful", "redundant", "noisy")
SHARES = {"useful": 0.4, "redundant": 0.5, "noisy": 0.1}

_ANIMALS = "fox owl bear wolf hare crow toad mole seal lynx deer swan wren newt goat duck pike carp moth wasp".split()  # noqa: SIM905
_THINGS = "lamp cup key rope door coin drum kite sail bell hat ring boot harp sled vase comb fork tile nail".split()  # noqa: SIM905
_ADJECTIVES = "small old quiet quick young tall shy brave lazy proud".split()  # noqa: SIM905
_COLOURS = "red blue green grey black white brown amber violet silver".split()  # noqa: SIM905
_PLACES = "forest river valley meadow harbour garden desert tundra cave orchard".split()  # noqa: SIM905
_QUESTIONS = (
    "Describe the {adjective} {noun}.",
    "What is the {adjective} {noun} like?",
    "Tell me about the {adjective} {noun}.",
)
_ANSWER = "The {adjective} {noun} is {colour} and belongs in the {place}."
_REPEATED = (
    ("Say hello.", "Hello! How can I help you today?"),
    ("Thank you.", "You are welcome. Have a nice day."),
    ("Who are you?", "I am a helpful assistant made for this demo."),
)


def instruction_rows(n: int, seed: int = 0, shares: dict[str, float] | None = None) -> list[dict[str, Any]]:
    """Return instruction rows with columns `prompt`, `completion` and `source`, shuffled.

    - `useful`: questions about animals: the animal fixes the colour and the adjective the place, which can be learned.
    - `redundant`: three pairs over and over; learned at once, with nothing to gain after that.
    - `noisy`: the same questions about things, with a random colour and place; nothing to learn but the form.

    Args:
        n: number of rows.
        seed: seed of the draw; the facts are the same for every seed.
        shares: share of each source, summing to 1; `SHARES` by default.

    Raises:
        ValueError: for an unknown source or shares that do not sum to 1.
    """
    shares = SHARES if shares is None else shares
    unknown = set(shares) - set(SOURCES)
    if unknown:
        raise ValueError(f"`shares` has the sources {sorted(unknown)}; there are {list(SOURCES)}.")
    if abs(sum(shares.values()) - 1) > 1e-9:
        raise ValueError(f"`shares` must sum to 1, but {shares} sums to {sum(shares.values())}.")
    rng = random.Random(seed)
    sources = rng.choices(list(shares), weights=list(shares.values()), k=n)
    return [_row(source, rng) for source in sources]


def _row(source: str, rng: random.Random) -> dict[str, str]:
    if source == "redundant":
        prompt, completion = rng.choice(_REPEATED)
        return {"prompt": prompt, "completion": completion, "source": source}
    adjective, noun = rng.choice(_ADJECTIVES), rng.choice(_ANIMALS if source == "useful" else _THINGS)
    if source == "useful":
        colour = _COLOURS[_ANIMALS.index(noun) % len(_COLOURS)]
        place = _PLACES[_ADJECTIVES.index(adjective)]
    else:
        colour, place = rng.choice(_COLOURS), rng.choice(_PLACES)
    completion = _ANSWER.format(adjective=adjective, noun=noun, colour=colour, place=place)
    return {
        "prompt": rng.choice(_QUESTIONS).format(adjective=adjective, noun=noun),
        "completion": completion,
        "source": source,
    }
