"""The extraction audit: what a model that has memorised records writes, and how likely it is to, without sampling."""

import json
import math

import numpy as np
import pytest
import torch
from datasets import Dataset, concatenate_datasets
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from audit_helpers import LENGTH, fit, memorise, record_tokenizer, records, save_base, slow_log_probs
from hf_gradkit.audit import audit_extraction, hold_out
from hf_gradkit.audit.evaluation import clopper_pearson
from hf_gradkit.audit.extraction_figures import Guesses
from hf_gradkit.audit.generation import ENDED, GREEDY, Attempt, GenerationScorer
from hf_gradkit.audit.sampling import Sampling
from hf_gradkit.audit.suffixes import Prompt, SuffixScorer
from hf_gradkit.data.synthetic_secrets import canary_rows
from hf_gradkit.scoring import SFTFormat, tokenize_sft

LAYOUT = SFTFormat(max_length=LENGTH)
ROWS, PREFIX, SUFFIX = 80, 30, 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("extraction")


@pytest.fixture(scope="module")
def base(folder):
    return save_base(folder, record_tokenizer(), steps=100)


@pytest.fixture(scope="module")
def model_folder(folder, base):
    return memorise(
        base, folder / "full", AutoTokenizer.from_pretrained(base), rows=ROWS, held=20, num_train_epochs=40
    )


@pytest.fixture(scope="module")
def model(model_folder):
    return AutoModelForCausalLM.from_pretrained(model_folder).eval()


@pytest.fixture(scope="module")
def prompts(base):
    rows = tokenize_sft(records(ROWS), AutoTokenizer.from_pretrained(base), LAYOUT)
    return [Prompt(row.input_ids[:PREFIX], row.input_ids[PREFIX : PREFIX + SUFFIX], row.row) for row in rows]


def run(model, tmp_path, dataset=None, **options):
    """Audit short suffixes, with a cache of its own."""
    defaults = {"layout": LAYOUT, "prefix_tokens": PREFIX, "suffix_tokens": SUFFIX, "generations": 2}
    defaults["cache_folder"] = tmp_path / "cache"
    return audit_extraction(model, records(ROWS) if dataset is None else dataset, **{**defaults, **options})


# ---- without sampling -------------------------------------------------------------------------------------------


def slow_chance(log_p: torch.Tensor, token: int, sampling: Sampling) -> float:
    """Return the probability that a token is sampled, from log p over the vocabulary, by sorting. (v,)"""
    scaled = (log_p / sampling.temperature).softmax(0)
    order = scaled.argsort(descending=True).tolist()[: sampling.top_k]
    kept, total = [], 0.0
    whole = sum(scaled[i].item() for i in order)
    for i in order:
        if total / whole >= sampling.top_p:
            break
        kept.append(i)
        total += scaled[i].item()
    return scaled[token].item() / total if token in kept else 0.0


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(1.0, None, 1.0), Sampling(1.5, 5, 1.0), Sampling(0.8, None, 0.5)]
)
def test_the_chance_of_each_suffix_token(sampling, model, prompts):
    """Against each prompt alone, in float64, filtered by sorting."""
    short = [Prompt(p.prefix, p.suffix[: 5 + i], p.row) for i, p in enumerate(prompts[:8])]
    found = SuffixScorer(model, sampling, 16).score(short)
    for i, prompt in enumerate(short):
        log_probs = slow_log_probs(model, [*prompt.prefix, *prompt.suffix])[PREFIX - 1 :]
        for j in range(16):
            if j >= len(prompt.suffix):
                assert found["sampled"][i, j] == found["greedy"][i, j] == found["log_probs"][i, j] == 1
                continue
            token = int(prompt.suffix[j])
            assert found["sampled"][i, j] == pytest.approx(slow_chance(log_probs[j], token, sampling), abs=1e-4)
            assert found["greedy"][i, j] == (log_probs[j].argmax() == token)
            assert found["log_probs"][i, j] == pytest.approx(log_probs[j, token].item(), abs=1e-4)


def test_a_suffix_is_sampled_as_often_as_its_chance_says(model, prompts):
    """transformers' own sampling, 2000 times, with the same settings."""
    sampling = Sampling(1.2, 10, 0.9)
    rng = np.random.default_rng(0)
    for prompt in [prompts[i] for i in rng.permutation(len(prompts))[:3]]:
        pair = Prompt(prompt.prefix, prompt.suffix[:2], 0)
        chance = float(SuffixScorer(model, sampling, 2).score([pair])["sampled"].prod())
        torch.manual_seed(0)
        written = model.generate(
            input_ids=torch.from_numpy(prompt.prefix)[None].repeat(2000, 1),
            generation_config=GenerationConfig(
                do_sample=True, temperature=1.2, top_k=10, top_p=0.9, max_new_tokens=2, pad_token_id=1
            ),
        )[:, PREFIX:]
        count = int((written == torch.from_numpy(pair.suffix)).all(1).sum())
        low, high = clopper_pearson(count, 2000, level=0.9999)
        assert low <= chance <= high


def test_greedy_extraction_is_a_chance_of_one_at_top_k_one(model, prompts):
    one = SuffixScorer(model, Sampling(1.0, 1, 1.0), SUFFIX).score(prompts[:30])
    greedy = GenerationScorer(model, Sampling(), SUFFIX, None, 0).score([Attempt(p, GREEDY) for p in prompts[:30]])
    written = (greedy["guess"] == np.stack([p.suffix for p in prompts[:30]])).all(1)
    assert written.any()
    assert not written.all()
    assert ((one["sampled"].prod(1) == 1) == written).all()
    assert (one["greedy"].all(1) == written).all()


# ---- generation -------------------------------------------------------------------------------------------------


def test_greedy_guesses_are_transformers_own(model, base, prompts):
    end = AutoTokenizer.from_pretrained(base).eos_token_id
    scorer = GenerationScorer(model, Sampling(), 50, end, seed=0)
    guesses = scorer.score([Attempt(p, GREEDY) for p in prompts[:6]])["guess"]
    ended = 0
    for prompt, guess in zip(prompts, guesses, strict=False):
        ids = torch.from_numpy(prompt.prefix)[None]
        expected = model.generate(ids, do_sample=False, max_new_tokens=50, eos_token_id=end, pad_token_id=1)
        assert guess[guess != ENDED].tolist() == expected[0, PREFIX:].tolist()
        ended += (guess == ENDED).any()
    assert ended


def test_samples_are_drawn_by_their_probability(model, prompts):
    sampling = Sampling(1.5, 6, 0.95)
    items = [Attempt(prompts[0], k) for k in range(1500)]
    first = GenerationScorer(model, sampling, 1, None, seed=3).score(items)["guess"][:, 0]
    with torch.inference_mode():
        logits = model(torch.from_numpy(prompts[0].prefix)[None]).logits[:, -1]
    chances = sampling.warp(logits).softmax(-1)[0]
    assert set(first.tolist()) <= set(chances.nonzero()[:, 0].tolist())
    for token, count in zip(*np.unique(first, return_counts=True), strict=True):
        low, high = clopper_pearson(int(count), 1500, level=0.9999)
        assert low <= chances[token].item() <= high


def test_samples_do_not_depend_on_the_batch(model, prompts):
    scorer = GenerationScorer(model, Sampling(1.0, None, 1.0), 8, None, seed=1)
    items = [Attempt(p, k) for p in prompts[:6] for k in (GREEDY, 0, 1)]
    whole = scorer.score(items)["guess"]
    apart = np.concatenate([scorer.score([item])["guess"] for item in reversed(items)])[::-1]
    assert (whole == apart).all()
    assert (whole[1::3] != whole[2::3]).any()
    other = GenerationScorer(model, Sampling(1.0, None, 1.0), 8, None, seed=2).score(items)["guess"]
    assert (other[0::3] == whole[0::3]).all()
    assert (other[1::3] != whole[1::3]).any()


def test_settings_of_the_model_do_not_count(model, prompts):
    expected = GenerationScorer(model, Sampling(), 8, None, 0).score([Attempt(p, GREEDY) for p in prompts[:4]])
    before = model.generation_config
    own = GenerationConfig(repetition_penalty=5.0, do_sample=True, min_new_tokens=3)
    try:
        model.generation_config = own
        found = GenerationScorer(model, Sampling(), 8, None, 0).score([Attempt(p, GREEDY) for p in prompts[:4]])
        assert model.generation_config is own
    finally:
        model.generation_config = before
    assert (found["guess"] == expected["guess"]).all()


def test_the_top_guess_and_the_shares():
    written = np.array([[[1, 2], [3, 4]], [[5, 6], [5, ENDED]], [[9, 9], [9, 9]]])
    truths = [np.array([3, 4]), np.array([5]), np.array([7, 8])]
    guesses = Guesses(truths, written, np.array([[0.1, 0.2], [0.4, 0.3], [0.0, 0.0]]))
    assert {k: v.tolist() for k, v in guesses.verbatim.items()} == {
        "greedy": [False, True, False],
        "top": [True, True, False],
        "any": [True, True, False],
    }
    figures = guesses.figures(np.array([True, True, True]))
    assert figures["verbatim"]["top"]["share"] == pytest.approx(2 / 3)
    assert figures["hamming"] == pytest.approx(1 / 3)
    assert figures["longest_run"] == pytest.approx(2 / 3)


# ---- the whole audit --------------------------------------------------------------------------------------------


def test_members_are_extracted_and_held_out_records_are_not(model_folder, base, tmp_path):
    audit = run(model_folder, tmp_path, reference_model=base)
    members, others = audit.figures["members"], audit.figures["non_members"]
    assert audit.figures["ranked_by"] == "flora"
    assert (members["prompts"], others["prompts"]) == (60, 20)
    assert members["verbatim"]["greedy"]["share"] > 0.5
    assert others["verbatim"]["any"]["count"] == 0
    assert members["greedy"] == members["verbatim"]["greedy"]
    assert members["edit"] < others["edit"]
    assert members["longest_run"] > others["longest_run"]
    assert members["recall_at_errors"] >= members["verbatim"]["top"]["share"]
    shares = {(of["n"], of["p"]): of["share"] for of in members["discoverable"]}
    assert shares[1000, 0.1] >= shares[10, 0.1] >= shares[1, 0.1] >= shares[1, 0.9]
    json.dumps(audit.figures)


def test_guesses_are_ranked_by_the_ratio_of_losses(model_folder, base, tmp_path):
    """The ranking of a few prompts against losses in float64, one text at a time."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    train, held = hold_out(records(ROWS), 20 / ROWS, id_column="uid")
    members, others = train.select(range(3)), held.select(range(3))
    audit = run(model_folder, tmp_path, members, non_members=others, reference_model=base)
    model, before = (AutoModelForCausalLM.from_pretrained(path).eval() for path in (model_folder, base))
    rows = tokenize_sft(concatenate_datasets([members, others]), tokenizer, LAYOUT)
    scorer = GenerationScorer(model, Sampling(), SUFFIX, tokenizer.eos_token_id, seed=0)
    for i, row in enumerate(rows):
        prompt = Prompt(row.input_ids[:PREFIX], row.input_ids[PREFIX:], i)
        guesses = scorer.score([Attempt(prompt, k) for k in (GREEDY, 0, 1)])["guess"]
        scores = []
        for guess in guesses:
            ids = [*prompt.prefix, *guess[guess != ENDED]]
            places, tokens = range(len(ids) - 1), ids[1:]
            losses = [-slow_log_probs(m, ids)[places, tokens].mean().item() for m in (model, before)]
            scores.append(-losses[0] / losses[1])
        best = guesses[int(np.argmax(scores))]
        assert audit.guesses[i] == tokenizer.decode(best[best != ENDED])
        assert audit.prefixes[i] == tokenizer.decode(prompt.prefix)


def test_without_generation_and_without_reference(model_folder, tmp_path):
    audit = run(model_folder, tmp_path, generations=0)
    assert "verbatim" not in audit.figures["members"]
    assert audit.verbatim == {}
    assert audit.figures["members"]["greedy"]["share"] > 0.5
    assert audit.p_z[audit.members].mean() > 10 * audit.p_z[~audit.members].mean()
    ranked = run(model_folder, tmp_path)
    assert ranked.figures["ranked_by"] == "loss"


def test_batch_sizes_give_one_result(model_folder, base, tmp_path):
    one = run(model_folder, tmp_path / "one", reference_model=base, batch_size=1)
    many = run(model_folder, tmp_path / "many", reference_model=base, batch_size=32)
    assert np.abs(one.p_z - many.p_z).max() < 1e-5
    assert one.guesses == many.guesses
    assert one.figures["members"]["verbatim"] == many.figures["members"]["verbatim"]


def test_canaries_that_were_planted_stand_out(folder, base, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(base)
    planted = Dataset.from_list(canary_rows(4, alternatives=63))
    split = hold_out(records(40), 0.25, output_dir=folder / "canaries")
    train = concatenate_datasets([split.train.select_columns("text"), *[planted.select_columns("text")] * 4])
    model = AutoModelForCausalLM.from_pretrained(base)
    fit(model, tokenizer, train, folder / "canaries", num_train_epochs=15, learning_rate=3e-3)
    audit = run(
        model,
        tmp_path,
        records(40),
        generations=0,
        canaries=planted,
        tokenizer=tokenizer,
        reference_model=base,
        hold_out=split.record,
    )
    found = audit.figures["canaries"]
    assert found["largest"] == 6.0
    assert found["target"]["mean"] > 5
    assert found["reference"]["mean"] < 4  # a rank that is uniform gives 1.4 on average
    with pytest.raises(ValueError, match="Canaries have the columns 'text' and 'alternatives', but the data has no"):
        run(str(base), tmp_path, canaries=records(3), hold_out=hold_out(records(ROWS), 0.2).record)
    own = Dataset.from_list([{"text": "a", "alternatives": ["a", "b"]}])
    with pytest.raises(ValueError, match="Row 0 of the canaries has its own text among its alternatives"):
        run(str(base), tmp_path, canaries=own, hold_out=hold_out(records(ROWS), 0.2).record)


def test_records_that_are_too_short(model_folder, tmp_path):
    data = records(20, seed=5)
    short = Dataset.from_list([{"text": "Kalo was born."}] + [{"text": text} for text in data["text"][:10]])
    others = data.select(range(10, 20)).select_columns("text")
    with pytest.raises(ValueError, match=r"1 of 21 examples have fewer than prefix_tokens \+ 1 = 31 tokens .*: \[0\]"):
        run(model_folder, tmp_path, short, non_members=others)
    audit = run(model_folder, tmp_path, short, non_members=others, skip_short=True, generations=0)
    assert audit.figures["too_short"] == 1
    assert audit.rows.tolist() == list(range(1, 21))
    with pytest.raises(ValueError, match="None of the members is longer than `prefix_tokens`"):
        run(model_folder, tmp_path, short.select([0]), non_members=others, skip_short=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefix_tokens": 0}, "`prefix_tokens` must be a whole number of at least 1, but it is 0"),
        ({"suffix_tokens": 1.5}, "`suffix_tokens` must be a whole number"),
        ({"generations": -1}, "`generations` must be a whole number of at least 0"),
        ({"samples": (0,)}, "`samples` must be whole numbers of at least 1, but one is 0"),
        ({"chances": (1.5,)}, "`chances` must lie above 0 and be at most 1, but one is 1.5"),
    ],
)
def test_options_that_are_wrong(options, message, model_folder, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(model_folder, tmp_path, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "`temperature` must be a number above 0, but it is 0"),
        ({"top_p": 1.1}, "`top_p` is a probability and must be at most 1"),
        ({"top_p": math.nan}, "`top_p` must be a number above 0"),
        ({"top_k": 0}, "`top_k` must be at least 1, but it is 0. Leave it out"),
        ({"top_k": 2.5}, "`top_k` must be a whole number or None"),
    ],
)
def test_sampling_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**options)
