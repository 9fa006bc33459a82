"""What is kept of difficulty scores, by which id, and what is refused."""

import copy

import numpy as np
import pytest
import torch
from datasets import Dataset

from difficulty_helpers import ALL, assert_scores, save, scoring_with, sft_data
from hf_gradkit.data.example_ids import example_ids
from hf_gradkit.data.tiny import tiny_llama
from hf_gradkit.scoring import DifficultyScoring, NonFiniteScoreError, SFTFormat, add_difficulty, tokenize_sft
from hf_gradkit.scoring.difficulty_scorers import GradientScorer
from hf_gradkit.scoring.difficulty_summary import rank_correlation


@pytest.fixture
def model(tokenizer):
    return tiny_llama(tokenizer, hidden_size=32)


@pytest.fixture
def score(model, tokenizer, tmp_path):
    return scoring_with(model, tokenizer, tmp_path)


# ---- what is kept ---------------------------------------------------------------------------------------------


def test_after_a_failure_it_goes_on_where_it_was(score, tokenizer, tmp_path, monkeypatch):
    folders = []
    for seed in (0, 1):
        folders.append(save(tiny_llama(tokenizer, hidden_size=32, seed=seed), tokenizer, tmp_path / f"seed-{seed}"))
    data, work = sft_data("prompt-completion"), tmp_path / "work"
    once = score(data, folders, tokenizer=None)
    left, whole = [5], GradientScorer.score

    def fails(self, items):
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("out of memory")
        return whole(self, items)

    monkeypatch.setattr(GradientScorer, "score", fails)
    options = {"by": ALL, "batch_size": 3, "cache_folder": work, "example_id_column": "uid"}
    with pytest.raises(RuntimeError, match="out of memory"):
        DifficultyScoring(data, folders, **options).run()  # four batches by the first model, one by the second
    monkeypatch.setattr(GradientScorer, "score", whole)
    rest = DifficultyScoring(data, folders, **{**options, "batch_size": 2}).run()
    assert rest.scored == 24 - 15
    for name, values in rest.columns.items():
        assert values == pytest.approx(np.array(once[name]), rel=1e-5)
    monkeypatch.setattr("hf_gradkit.scoring.language_models.load_language_model", None)
    assert DifficultyScoring(data, folders, **options).run().scored == 0


def test_what_is_another_scoring(model, tokenizer, tmp_path):
    def key(data, live=model, **options):
        return DifficultyScoring(data, live, **{"tokenizer": tokenizer, "example_id_column": "uid", **options}).key

    data = sft_data("prompt-completion")
    frozen = copy.deepcopy(model)
    frozen.lm_head.requires_grad_(False)
    keys = [
        key(data),
        key(data.select(range(11))),
        key(data.map(lambda row: {"uid": row["uid"] + "x"})),
        key(data, tiny_llama(tokenizer, hidden_size=32, seed=1)),
        key(data, layout=SFTFormat(completion_only_loss=False)),
        key(data, by=("el2n", "loss")),
        key(data, by=("grand",)),
        key(data, by=("grand",), parameters="norm"),
        key(data, frozen, by=("grand",)),
        key(data, dtype="bfloat16"),
    ]
    assert len(set(keys)) == len(keys)
    assert key(data.add_column("further", [0] * 12), batch_size=3) == keys[0]


def test_scored_data_can_be_scored_again(score, model, tokenizer, tmp_path):
    given = {"models": model, "tokenizer": tokenizer, "cache_folder": tmp_path / "kept"}
    first = add_difficulty(sft_data("text"), by=("loss", "el2n"), **given)
    assert first.column_names[2:] == ["example_id", "label_tokens", "loss", "el2n", "difficulty_model"]
    again = add_difficulty(first.shuffle(seed=0), by="loss", **given)
    assert again.column_names[2:] == ["example_id", "label_tokens", "loss", "difficulty_model"]
    assert dict(zip(again["uid"], again["example_id"], strict=True)) == dict(
        zip(first["uid"], first["example_id"], strict=True)
    )
    foreign = sft_data("text").add_column("loss", [0.0] * 12)
    with pytest.raises(ValueError, match=r"The data has columns \['loss'\] already"):
        score(foreign)
    with pytest.raises(ValueError, match=r"scores are columns of a `datasets\.Dataset`"):
        score(sft_data("text").to_iterable_dataset())


# ---- ids and examples without labels --------------------------------------------------------------------------


def test_ids_are_of_the_content():
    data = sft_data("text")
    doubled = Dataset.from_list([*data, data[0], data[0]])
    ids = example_ids(doubled, ["text"])
    assert ids[12:] == [f"{ids[0]}-1", f"{ids[0]}-2"]
    assert len(set(ids)) == 14
    moved = doubled.shuffle(seed=0)
    assert sorted(example_ids(moved, ["text"])) == sorted(ids)
    assert example_ids(data.rename_column("text", "texts"), ["texts"]) != ids[:12]
    assert example_ids(data, ["text"], "uid") == data["uid"]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, 2, 1], "Rows 0 and 2 of the data have the same id 1"),
        (["a", None, "b"], "Row 1 of the data has None"),
        ([0.5, 1.5, 2.5], "Row 0 of the data has 0.5"),
    ],
)
def test_ids_that_are_none(ids, message):
    with pytest.raises(ValueError, match=message):
        example_ids(sft_data("text", 3).add_column("key", ids), ["text"], "key")
    with pytest.raises(ValueError, match=r"Did you mean 'uid'.* Its columns: 'text', 'uid'"):
        example_ids(sft_data("text", 3), ["text"], "uuid")


def test_examples_without_a_label_have_no_score_and_are_counted(score, model, tokenizer, caplog):
    data, layout = sft_data("prompt-completion"), SFTFormat(max_length=7)
    rows = tokenize_sft(data, tokenizer, layout)
    empty = [row.row for row in rows if not row.label_tokens]
    assert 0 < len(empty) < 12
    scored = score(data, layout=layout)
    assert f"{len(empty)} of 12 examples have no label token" in caplog.text
    assert data[empty[0]]["uid"] in caplog.text
    assert [i for i in range(12) if scored["loss"][i] is None] == empty
    assert [i for i in range(12) if scored["label_tokens"][i] == 0] == empty
    kept = [i for i in range(12) if i not in empty]
    assert_scores(scored.select(kept), model.eval(), [rows[i] for i in kept])
    with pytest.raises(ValueError, match=r"No example has a label token.*`max_length` \(2\)"):
        score(data, layout=SFTFormat(max_length=2))


# ---- what is refused ------------------------------------------------------------------------------------------


def test_numbers_that_are_not_finite_name_their_rows(score, model, tokenizer):
    data = sft_data("text")
    rows = tokenize_sft(data, tokenizer)
    token = int(rows[3].input_ids[2])
    bad = [row.row for row in rows if token in row.input_ids[:-1]]
    assert 0 < len(bad) < 12
    model.model.embed_tokens.weight.data[token] = torch.nan
    for by in (("loss",), ALL):
        with pytest.raises(NonFiniteScoreError, match=r"'loss' of rows \[\d+.*is not a finite number") as error:
            score(data, by=by, batch_size=1)
        assert int(str(error.value).partition("[")[2].partition("]")[0]) in bad


def test_a_gradient_that_is_not_finite_names_its_rows(score, model):
    """The forward is fine, the backward of one example is not."""

    def spoil(module, inputs, output):
        output.register_hook(lambda g: g * torch.where(torch.arange(len(g)) == 1, torch.inf, 1.0)[:, None, None])

    handle = model.model.norm.register_forward_hook(spoil)
    with pytest.raises(ValueError, match=r"The rows \[\d+, \d+, \d+\] of the data were scored together.*not finite"):
        score(sft_data("text"), batch_size=3)
    handle.remove()
    assert len(score(sft_data("text"))) == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "elnn"}, "`by` names 'elnn'. Did you mean 'el2n'"),
        ({"by": ()}, "`by` names no score"),
        ({"by": ("loss", "loss")}, "`by` names a score twice"),
        ({"by": "reward"}, "Known scores of SFT data: 'loss', 'perplexity', 'el2n', 'grand'"),
        ({"dtype": "float31"}, "Did you mean 'float32'"),
        ({"batch_size": 0}, "`batch_size` must be an integer of at least 1"),
        ({"models": "./gone"}, "The model folder './gone' does not exist"),
        ({"tokenizer": None}, "was given as an object without a name"),
        ({"example_id_column": "nowhere"}, "`example_id_column` is 'nowhere'"),
        ({"layout": SFTFormat(dataset_text_field="prompt")}, "`dataset_text_field`"),
    ],
)
def test_options_that_are_refused(options, message, score):
    with pytest.raises(ValueError, match=message):
        score(sft_data("text"), **options)


def test_a_compiled_model(score, model):
    model.compile()
    with pytest.raises(ValueError, match="The model is compiled"):
        score(sft_data("text"))


def test_rank_correlation():
    a, b = np.array([1.0, 2, 2, 4, 9]), np.array([10.0, 7, 8, 3, 1])
    assert rank_correlation(a, a**3) == pytest.approx(1)
    # Ranks 1, 2.5, 2.5, 4, 5 against 5, 3, 4, 2, 1.
    assert rank_correlation(a, b) == pytest.approx(np.corrcoef([1, 2.5, 2.5, 4, 5], [5, 3, 4, 2, 1])[0, 1])
    assert rank_correlation(a, np.ones(5)) is None
