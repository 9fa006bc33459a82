"""Membership attacks against the formulas, written out token by token."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_gradkit.audit.attacks import ATTACKS, FLoRA, TokenRecord, TokenScores, build_attack, build_attacks

TOKEN_ATTACKS = [name for name, attack in ATTACKS.items() if attack.record_type is TokenRecord]


def record_of(rng: np.random.Generator, tokens: int, vocabulary: int = 17, reference: bool = True) -> TokenRecord:
    """Return the record of a text of random tokens, under two models of random logits."""
    labels = rng.integers(0, vocabulary, tokens)
    target, base = (token_scores(rng.normal(scale=2, size=(tokens, vocabulary)), labels) for _ in range(2))
    return TokenRecord(target, base if reference else None, zlib_bytes=int(rng.integers(5, 90)))


def token_scores(logits: np.ndarray, labels: np.ndarray) -> TokenScores:
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    p = np.exp(log_p)
    mean = (p * log_p).sum(1)
    std = np.sqrt((p * (log_p - mean[:, None]) ** 2).sum(1))
    return TokenScores(log_p[np.arange(len(labels)), labels], mean, std, logits.argmax(1) == labels)


def slow_scores(record: TokenRecord) -> dict[str, float]:
    """Return every score, one token at a time, from the definitions."""
    target, base = record.target, record.reference
    t = len(target.log_probs)
    loss = -sum(target.log_probs) / t
    base_loss = -sum(base.log_probs) / t
    lowest = max(1, t * 20 // 100)
    normed = [(target.log_probs[i] - target.mean[i]) / target.std[i] for i in range(t)]
    up = down = 1e-3
    for i in range(t):
        gain = target.log_probs[i] - base.log_probs[i]
        if not target.top1[i]:
            up, down = up + max(gain, 0), down + max(-gain, 0)
    shares = []
    for width in (2, 3, 4, 6, 9, 13, 18, 25, 32, 40):
        starts = range(t - width + 1)
        won = [sum(base.log_probs[i : i + width]) < sum(target.log_probs[i : i + width]) for i in starts]
        if won:
            shares.append(sum(won) / len(won))
    return {
        "loss": -loss,
        "zlib": -loss / record.zlib_bytes,
        "min_k": sum(sorted(target.log_probs)[:lowest]) / lowest,
        "min_k_plus_plus": sum(sorted(normed)[:lowest]) / lowest,
        "flora": -loss / base_loss,
        "log_reference": base_loss - loss,
        "error_zone": up / down,
        "window": sum(shares) / len(shares) if shares else float(target.log_probs[0] > base.log_probs[0]),
    }


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), tokens=st.integers(1, 60))
def test_each_score_is_its_formula(seed, tokens):
    record = record_of(np.random.default_rng(seed), tokens)
    expected = slow_scores(record)
    assert set(expected) == set(TOKEN_ATTACKS)
    for name, attack in build_attacks(None, {}, reference=True).items():
        (score,) = attack([record])
        assert score == pytest.approx(expected[name], rel=1e-9, abs=1e-12), name


@pytest.mark.parametrize("name", TOKEN_ATTACKS)
def test_a_memorised_text_scores_higher(name):
    """The same text under a target that has moved half way to certainty on each token."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 17, 50)
    logits = rng.normal(size=(50, 17))
    base = token_scores(logits, labels)
    logits[np.arange(50), labels] += 1.5
    learned = token_scores(logits, labels)
    seen, unseen = TokenRecord(learned, base, 60), TokenRecord(base, base, 60)
    scores = build_attack(name, {})([seen, unseen])
    assert scores[0] > scores[1]


def test_k_counts_tokens_and_never_none():
    record = record_of(np.random.default_rng(1), 15)
    lowest = np.sort(record.target.log_probs)
    assert build_attack("min_k", {"k": 20}).score(record) == pytest.approx(lowest[:3].mean())
    assert build_attack("min_k", {"k": 1}).score(record) == pytest.approx(lowest[0])
    assert build_attack("min_k", {"k": 100}).score(record) == pytest.approx(lowest.mean())


def test_error_zone_without_errors_is_one():
    record = record_of(np.random.default_rng(2), 9)
    sure = TokenScores(record.target.log_probs, record.target.mean, record.target.std, np.ones(9, dtype=bool))
    assert build_attack("error_zone", {}).score(TokenRecord(sure, record.reference, 9)) == 1.0


def test_a_token_that_the_model_is_certain_of():
    """Without spread over the vocabulary the normed figure stays finite."""
    certain = TokenScores(np.zeros(3), np.zeros(3), np.zeros(3), np.ones(3, dtype=bool))
    assert math.isfinite(build_attack("min_k_plus_plus", {}).score(TokenRecord(certain, None, 4)))


def test_a_reference_that_knows_the_text_is_flagged():
    record = record_of(np.random.default_rng(3), 8)
    known = TokenScores(np.full(8, -0.01), np.zeros(8), np.ones(8), np.ones(8, dtype=bool))
    assert FLoRA().doubtful(TokenRecord(record.target, known, 8))
    assert not FLoRA().doubtful(record)


def test_without_a_reference_the_others_run():
    record = record_of(np.random.default_rng(4), 8, reference=False)
    attacks = build_attacks(None, {}, reference=False)
    assert set(attacks) == {"loss", "zlib", "min_k", "min_k_plus_plus"}
    for attack in attacks.values():
        assert math.isfinite(attack.score(record))
    with pytest.raises(ValueError, match="there is no reference"):
        FLoRA().score(record)
    with pytest.raises(ValueError, match="'flora' compares the target with the model before fine-tuning"):
        build_attacks(["loss", "flora"], {}, reference=False)


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["los"], {}, "There is no membership attack 'los'. Did you mean 'loss'?"),
        ([], {}, "`attacks` is empty"),
        (["loss"], {"min_k": {"k": 10}}, "`attack_kwargs` has options for 'min_k', which is not among"),
        (["min_k"], {"min_k": {"kk": 10}}, "has no option 'kk'. Did you mean 'k'?"),
        (["min_k"], {"min_k": {"k": 0}}, "`k` of MinK must be a number above 0 and at most 100, but it is 0"),
        (["error_zone"], {"error_zone": {"epsilon": True}}, "`epsilon` of ErrorZone must be a number above 0"),
        (["window"], {"window": {"widths": [2, 0]}}, "`widths` of Window must be whole numbers"),
    ],
)
def test_options_that_are_wrong(names, options, message):
    with pytest.raises(ValueError, match=message):
        build_attacks(names, options, reference=True)
