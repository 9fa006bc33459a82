"""Margins, qualities and embedders, each against a slow, plain computation with the real model."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaForCausalLM

from hf_gradkit.data.tiny import tiny_llama
from hf_gradkit.scoring import add_reward_margins
from hf_gradkit.selection import prompt_text
from hf_gradkit.selection.components import build_component, evaluate
from hf_gradkit.selection.embedders import EMBEDDERS
from hf_gradkit.selection.margins import MARGINS, ColumnMargin, ImplicitMargin, RewardModelMargin
from hf_gradkit.selection.prompts import Prompts
from hf_gradkit.selection.quality import QUALITIES, PerplexityBand, TextClassifier
from hf_gradkit.selection.tfidf import HashedTfidf
from hf_gradkit.selection.work import Work
from pair_helpers import OURS, dpo
from pairs import KINDS, make_pairs, pair_dataset, reward_model, save_reward_model


@pytest.fixture(scope="module")
def models(tmp_path_factory, tokenizer):
    """A policy, its reference, a reward model and a classifier of two labels."""
    folder = tmp_path_factory.mktemp("models")
    for name, seed in {"policy": 0, "reference": 1}.items():
        tiny_llama(tokenizer, hidden_size=32, seed=seed).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    save_reward_model(tokenizer, folder / "reward")
    classifier = reward_model(tokenizer, labels=2, id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1})
    classifier.save_pretrained(folder / "classifier")
    tokenizer.save_pretrained(folder / "classifier")
    return folder


@pytest.fixture
def work(tmp_path):
    return Work(tmp_path / "work", batch_size=3)


# ---- prompts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_of_every_format(kind):
    """Two pairs share each prompt; in plain text it is what the answers begin with alike."""
    dataset = pair_dataset(12, kind)
    prompts = Prompts.of(dataset)
    if kind == "plain":
        for row, number in zip(dataset, prompts.of_row, strict=True):
            assert row["chosen"].startswith(prompts.texts[number])
            assert row["rejected"].startswith(prompts.texts[number])
        return
    assert prompts.of_row.tolist() == [i // 2 for i in range(12)]
    assert prompts.rows.tolist() == list(range(0, 12, 2))
    expected = [row["prompt"] for row in make_pairs(12, "prompt")[::2]]
    assert prompts.texts == (expected if kind == "prompt" else [f"user: {text}" for text in expected])


def test_prompts_of_other_data():
    assert prompt_text({"prompt": "a", "completion": "b"}) == "a"
    talk = [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "u"}]}]
    assert prompt_text({"messages": [*talk, {"role": "assistant", "content": "x"}]}) == "system: s\nuser: u"
    assert prompt_text({"text": "all of it"}) == "all of it"
    with pytest.raises(ValueError, match=r"The data has no prompts.*Its columns: 'question'"):
        Prompts.of(Dataset.from_list([{"question": "a"}]))


# ---- functions of the user's own, and what configurations say -------------------------------------------------


def length_of_prompt(rows):
    return [len(row["prompt"]) for row in rows]


def test_a_function_is_called_with_each_row_once(work):
    dataset, seen = pair_dataset(600, "prompt"), []

    def function(rows):
        seen.append(len(rows))
        return [len(row["chosen"]) for row in rows]

    values = evaluate(function, "quality", dataset, work)
    assert values.tolist() == [len(text) for text in dataset["chosen"]]
    assert values.dtype == np.float64
    assert sum(seen) == 600
    assert max(seen) <= 256


@pytest.mark.parametrize(
    "convert",
    [
        lambda values: torch.tensor(values).bfloat16(),
        lambda values: torch.tensor(values, requires_grad=True),
        lambda values: [torch.tensor(value, requires_grad=True) for value in values],
        lambda values: torch.tensor(values).double(),
    ],
)
def test_a_functions_tensors(convert, work):
    dataset = pair_dataset(10, "prompt")
    values = evaluate(lambda rows: convert([float(i) for i in range(len(rows))]), "quality", dataset, work)
    assert values.tolist() == list(range(10))
    vectors = evaluate(lambda rows: convert([[1.0, 2.0]] * len(rows)), "embedder", dataset, work, vectors=True)
    assert vectors.tolist() == [[1, 2]] * 10


def test_a_functions_values_are_kept(work):
    dataset = pair_dataset(10, "prompt")
    first = evaluate(length_of_prompt, "quality", dataset, work)
    (folder,) = work.folder.iterdir()
    stamp = (folder / "scores.arrow").stat().st_mtime_ns
    assert (evaluate(length_of_prompt, "quality", dataset, work) == first).all()
    assert (folder / "scores.arrow").stat().st_mtime_ns == stamp
    evaluate(lambda rows: [1.0] * len(rows), "quality", dataset, work)
    evaluate(length_of_prompt, "quality", dataset.select(range(9)), work)
    assert len(list(work.folder.iterdir())) == 3


@pytest.mark.parametrize(
    ("function", "vectors", "message"),
    [
        (lambda rows: [1.0] * (len(rows) - 1), False, r"returned values of shape \(9,\) for 10 rows, where \(10,\)"),
        (lambda rows: 1.0, False, r"shape \(\) for 10 rows"),
        (lambda rows: np.ones((len(rows), 2)), False, r"shape \(10, 2\) for 10 rows, where \(10,\), one number"),
        (lambda rows: [1.0] * len(rows), True, r"shape \(10,\) for 10 rows, where \(10, d\), one vector"),
        (lambda rows: ["a"] * len(rows), False, r"`quality` \(.*\) returned something else than one number, or one"),
        (
            lambda rows: [[1.0], *[[1.0, 2.0]] * (len(rows) - 1)],
            True,
            r"for each of the rows \[0, 1, 2\] ... 9 of the",
        ),
    ],
)
def test_the_wrong_number_of_values(function, vectors, message, work):
    with pytest.raises(ValueError, match=message):
        evaluate(function, "quality", pair_dataset(10, "prompt"), work, vectors=vectors)


def test_values_that_are_not_finite_name_their_rows(work):
    def function(rows):
        return [math.nan if len(row["chosen"]) > 60 else 1.0 for row in rows]

    dataset = pair_dataset(30, "prompt")
    bad = [i for i, text in enumerate(dataset["chosen"]) if len(text) > 60]
    assert bad
    with pytest.raises(FloatingPointError, match=rf"`quality` of rows {bad} of the data".replace("[", r"\[")):
        evaluate(function, "quality", dataset, work)


def test_a_component_can_be_called_with_rows(models):
    rows = make_pairs(4, "prompt")
    assert HashedTfidf(8)(rows).shape == (4, 8)
    assert RewardModelMargin(str(models / "reward"))(rows).shape == (4,)


@pytest.mark.parametrize(
    ("role", "value", "message"),
    [
        ("margin", "reward", "There is no margin component 'reward'. Did you mean 'reward_model'?"),
        ("margin", {"by": "columns", "choosen": "a"}, "has no option 'choosen'. Did you mean 'chosen'?"),
        ("margin", 3, "`margin` must be a function, a name, or a mapping"),
        ("margin", {"model": "x"}, "`margin` must be a function, a name, or a mapping"),
        ("margin", "reward_model", "`margin` is 'reward_model', which needs a `model`"),
        ("margin", {"by": "implicit", "model": "x"}, "set `reference`"),
        ("quality", "no_module:f", "could not be imported"),
        ("quality", {"by": "test_selection_components:length_of_prompt", "a": 1}, "is a function, which takes rows"),
        ("quality", "test_selection_components:KINDS", "is a tuple and no function"),
        ("quality", {"by": "perplexity", "model": "x", "low": 9, "high": 3}, r"`low` \(9\) is above `high` \(3\)"),
        ("quality", {"by": "perplexity", "model": "x", "low": 0}, "`low` is a perplexity, so at least 1"),
        ("margin", {"by": "reward_model", "model": "x", "dtype": "float31"}, "`dtype` is 'float31'. Did you mean"),
        ("margin", {"by": "reward_model", "model": "x", "max_length": 0}, "`max_length` must be a whole number of at"),
        ("margin", {"by": "implicit", "model": "x", "reference": "y", "dtype": "f"}, "`dtype` is 'f'"),
        ("margin", {"by": "implicit", "model": "x", "reference": "y", "max_length": 1}, "at least 2"),
        ("quality", {"by": "perplexity", "model": "x", "dtype": "float31"}, "`dtype` is 'float31'"),
        ("quality", {"by": "perplexity", "model": "x", "max_length": 0}, "at least 2, but it is 0"),
        ("quality", {"by": "classifier", "model": "x", "max_length": 0}, "at least 1, but it is 0"),
        ("embedder", {"by": "transformers", "model": "x", "dtype": "float31"}, "`dtype` is 'float31'"),
        ("embedder", {"by": "transformers", "model": "x", "max_length": 0}, "at least 1, but it is 0"),
        ("embedder", {"by": "tfidf", "dimension": 0}, "`dimension` must be an integer of at least 1, but it is 0"),
    ],
)
def test_components_that_cannot_be(role, value, message):
    known = {"margin": MARGINS, "quality": QUALITIES, "embedder": EMBEDDERS}[role]
    with pytest.raises(ValueError, match=message):
        build_component(role, value, known)


def test_components_by_name():
    assert build_component("margin", "columns", MARGINS) == ColumnMargin()
    assert build_component("embedder", {"by": "tfidf", "seed": 3}, EMBEDDERS) == HashedTfidf(seed=3)
    assert build_component("quality", "test_selection_components:length_of_prompt", QUALITIES)(
        [{"prompt": "abc"}]
    ) == [3]
    assert build_component("quality", None, QUALITIES) is None


# ---- margins --------------------------------------------------------------------------------------------------


def test_margins_of_columns(work):
    columns = {"chosen": ["a", "b"], "rejected": ["c", "d"], "score_chosen": [3, 1.5], "score_rejected": [1.0, 2.0]}
    dataset = Dataset.from_dict(columns)
    assert ColumnMargin().of_dataset(dataset, work).tolist() == [2, -0.5]
    assert ColumnMargin("score_chosen").of_dataset(dataset, work).tolist() == [3, 1.5]
    scored = dataset.add_column("reward_margin", [7.0, 8.0])
    assert ColumnMargin().of_dataset(scored, work).tolist() == [7, 8]
    assert ColumnMargin("score_rejected", "score_chosen").of_dataset(scored, work).tolist() == [-2, 0.5]
    with pytest.raises(ValueError, match=r"no column with margins: .*Its columns: 'chosen', 'rejected'\."):
        ColumnMargin().of_dataset(dataset.select_columns(["chosen", "rejected"]), work)
    with pytest.raises(ValueError, match=r"reads the column 'scor_chosen', but .* Did you mean 'score_chosen'"):
        ColumnMargin("scor_chosen").of_dataset(dataset, work)
    broken = Dataset.from_dict({"chosen": ["a"] * 3, "rejected": ["b"] * 3, "reward_margin": [1.0, None, math.inf]})
    with pytest.raises(ValueError, match=r"not a finite number in rows \[1, 2\], such as None"):
        ColumnMargin().of_dataset(broken, work)


@pytest.mark.parametrize("kind", KINDS)
def test_margins_of_a_reward_model(kind, models, work, tmp_path):
    dataset = pair_dataset(9, kind)
    margins = RewardModelMargin(str(models / "reward")).of_dataset(dataset, work)
    expected = add_reward_margins(dataset, str(models / "reward"), cache_folder=tmp_path / "other")["reward_margin"]
    assert margins == pytest.approx(np.array(expected), abs=1e-5)
    assert margins.std() > 0.01


def test_a_reward_model_without_a_chat_template_on_conversations(models, tokenizer, work, tmp_path):
    save_reward_model(tokenizer, tmp_path / "reward")
    bare = AutoTokenizer.from_pretrained(tmp_path / "reward")
    bare.chat_template = None
    bare.save_pretrained(tmp_path / "reward")
    (tmp_path / "reward" / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(ValueError, match="the tokenizer of the reward model has no chat template"):
        RewardModelMargin(str(tmp_path / "reward")).of_dataset(pair_dataset(4, "messages"), work)


@pytest.mark.parametrize("kind", ["prompt", "messages prompt"])
def test_implicit_margins_are_those_of_trl(kind, models, work, tmp_path):
    """TRL's trainer, asked for reference log-probabilities ahead, with the policy and with the reference."""
    dataset = pair_dataset(9, kind)
    margins = ImplicitMargin(str(models / "policy"), str(models / "reference")).of_dataset(dataset, work)
    differences = []
    for name in ("policy", "reference"):
        options = {"precompute_ref_log_probs": True, "max_length": 1024}
        trainer = dpo(*OURS, str(models / name), tmp_path / name, dataset, **options)
        trainer.get_train_dataloader()
        ahead = trainer.train_dataset
        differences.append(np.array(ahead["ref_chosen_logps"]) - np.array(ahead["ref_rejected_logps"]))
    assert margins == pytest.approx(differences[0] - differences[1], abs=1e-3)
    assert margins.std() > 0.01


def test_implicit_margins_of_whole_texts(models, work):
    """What both answers begin with alike is the prompt, and no part of the sums."""
    plain, apart = pair_dataset(9, "messages"), pair_dataset(9, "messages prompt")
    margin = ImplicitMargin(str(models / "policy"), str(models / "reference"))
    assert margin.of_dataset(plain, work) == pytest.approx(margin.of_dataset(apart, work), abs=1e-6)
    with pytest.raises(ValueError, match=r"`max_length` \(3\) leaves nothing of an answer in rows \["):
        ImplicitMargin(str(models / "policy"), str(models / "reference"), max_length=3).of_dataset(apart, work)


# ---- quality --------------------------------------------------------------------------------------------------


def test_perplexity_band(models, tokenizer, work):
    dataset = pair_dataset(20, "prompt")
    model, losses = LlamaForCausalLM.from_pretrained(models / "policy").double(), []
    for text in dataset["prompt"]:
        ids = torch.tensor([tokenizer.eos_token_id, *tokenizer(text)["input_ids"]])[None]
        with torch.no_grad():
            losses.append(model(input_ids=ids, labels=ids).loss.item())
    losses = np.array(losses)
    low, high = np.exp(np.quantile(losses, [0.3, 0.6]))
    values = PerplexityBand(str(models / "policy"), low=low, high=high).of_dataset(dataset, work)
    expected = [-max(0.0, math.log(low) - loss, loss - math.log(high)) for loss in losses]
    assert values == pytest.approx(np.array(expected), abs=1e-5)
    assert (values == 0).any()
    assert (values < -1e-3).any()
    unique = losses[::2]
    own = PerplexityBand(str(models / "policy")).of_dataset(dataset, work)[::2]
    a, b = np.quantile(unique, [0.1, 0.9])
    assert own == pytest.approx(-np.maximum(0, np.maximum(a - unique, unique - b)), abs=1e-5)


def test_text_classifier(models, tokenizer, work):
    dataset = pair_dataset(8, "prompt")
    values = TextClassifier(str(models / "classifier"), label="good").of_dataset(dataset, work)
    model = AutoModelForSequenceClassification.from_pretrained(models / "classifier").eval()
    with torch.no_grad():
        each = [
            model(**tokenizer(text, return_tensors="pt")).logits.softmax(1)[0, 1].item() for text in dataset["prompt"]
        ]
    assert values == pytest.approx(np.array(each), abs=1e-5)
    with pytest.raises(ValueError, match="whose labels are 'bad', 'good', and `label` is None"):
        TextClassifier(str(models / "classifier")).of_dataset(dataset, work)
    one = TextClassifier(str(models / "reward")).of_dataset(dataset, work)
    model = AutoModelForSequenceClassification.from_pretrained(models / "reward").eval()
    with torch.no_grad():
        each = [model(**tokenizer(text, return_tensors="pt")).logits.item() for text in dataset["prompt"]]
    assert one == pytest.approx(np.array(each), abs=1e-5)
