"""Loss, perplexity, EL2N and GraNd against plain float64, whatever the batch, the checkpoint or the number of runs.

Everything runs in float32. Its rounding leaves relative errors of about 1e-7 in these figures; 1e-5 is asked for.
"""

import copy

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model

from difficulty_helpers import plain_scores, sft_data
from gradient_helpers import SMALL, build
from hf_gradkit.data.example_ids import example_ids
from hf_gradkit.data.tiny import tiny_llama, train_tokenizer
from hf_gradkit.scoring import DifficultyScoring, NonFiniteScoreError, SFTFormat, add_difficulty, tokenize_sft
from hf_gradkit.scoring.difficulty_scorers import GradientScorer, chosen_names
from hf_gradkit.scoring.difficulty_summary import rank_correlation

ALL = ("loss", "perplexity", "el2n", "grand")


@pytest.fixture
def model(tokenizer):
    return tiny_llama(tokenizer, hidden_size=32)


@pytest.fixture
def score(model, tokenizer, tmp_path):
    """Score with the tiny model, and keep nothing from call to call."""
    calls = []

    def call(dataset, models=model, by=ALL, **options):
        calls.append(None)
        known = {"tokenizer": tokenizer, "cache_folder": tmp_path / str(len(calls)), "example_id_column": "uid"}
        return add_difficulty(dataset, models, by, **{**known, **options})

    return call


def save(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def assert_scores(scored, model, rows, by=ALL, rel=1e-5, suffix=""):
    for found, row in zip(scored, rows, strict=True):
        expected = plain_scores(model, row)
        for name in by:
            assert found[f"{name}{suffix}"] == pytest.approx(expected[name], rel=rel), name


# ---- the scores -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("text", {}),
        ("text", {"max_length": 9}),
        ("prompt-completion", {}),
        ("prompt-completion", {"completion_only_loss": False}),
        ("chat prompt-completion", {}),
        ("chat of two turns", {"assistant_only_loss": True}),
    ],
)
def test_scores_are_those_of_one_example_at_a_time(kind, options, score, model, tokenizer):
    layout = SFTFormat(**options)
    scored = score(sft_data(kind), layout=layout, batch_size=5)
    assert_scores(scored, model.eval(), tokenize_sft(sft_data(kind), tokenizer, layout))
    assert len({round(value, 4) for value in scored["grand"]}) > 6


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "gemma2", "phi"])
def test_other_models(family, tmp_path):
    """Tied and untied heads, soft-capped logits, biases, position embeddings; data that is tokenised already."""
    model, rng = build(family), np.random.default_rng(0)
    data = Dataset.from_list([{"input_ids": rng.integers(1, 97, n).tolist()} for n in (12, 5, 9, 2)])
    scored = add_difficulty(data, model, ALL, cache_folder=tmp_path, batch_size=3)
    assert_scores(scored, model, tokenize_sft(data, None))


def test_very_sure_predictions(tmp_path):
    """Where p is nearly 1, EL2N is a difference of numbers that are nearly the same: right within 2e-4."""
    model, rng = build("llama"), np.random.default_rng(0)
    data = Dataset.from_list([{"input_ids": rng.integers(1, 97, 12).tolist()} for _ in range(6)])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    ids = torch.tensor(data["input_ids"])
    for _ in range(150):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    scored = add_difficulty(data, model, ALL, cache_folder=tmp_path)
    for found, row in zip(scored, tokenize_sft(data, None), strict=True):
        expected = plain_scores(model, row)
        for name in ALL:
            assert found[name] == pytest.approx(expected[name], rel=2e-3, abs=2e-4), name
        assert expected["loss"] < 0.8
        assert 0 <= found["el2n"] < 0.5


def test_bf16(model, tokenizer, score):
    """Rounding of weights and activations to 8 bits: GraNd within 3 %, the others within 1 %."""
    data = sft_data("prompt-completion")
    half = score(data, copy.deepcopy(model).bfloat16())
    rows = tokenize_sft(data, tokenizer)
    rounded = copy.deepcopy(model).bfloat16().float()
    for name in ALL:
        assert_scores(half, rounded, rows, (name,), 0.03 if name in ("grand", "perplexity") else 0.01)


def test_scores_do_not_depend_on_batch_padding_side_or_order(score, model, tokenizer):
    data = sft_data("prompt-completion")
    once = score(data, batch_size=1)
    left = copy.deepcopy(tokenizer)
    left.padding_side = left.truncation_side = "left"
    model.config.pad_token_id = tokenizer.eos_token_id
    shuffled = data.shuffle(seed=1)
    for other in (score(data, batch_size=12, tokenizer=left), score(shuffled, batch_size=5).sort("uid")):
        for name in ALL:
            assert list(other[name]) == pytest.approx(list(once[name]), rel=1e-5)
        assert other["uid"] == once["uid"]


def test_dropout_is_off_and_the_model_is_left_as_it_was(tokenizer, score):
    model = tiny_llama(tokenizer, hidden_size=32, dropout=0.5).train()
    frozen = model.model.embed_tokens.weight.requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = None if parameter is frozen else torch.ones_like(parameter)
    before = {name: (p.requires_grad, p.grad, p.clone()) for name, p in model.named_parameters()}
    data = sft_data("text")
    scored = score(data, model, parameters="layers")
    assert model.training
    assert "forward" not in vars(model)
    for name, parameter in model.named_parameters():
        required, gradient, values = before[name]
        assert parameter.requires_grad is required
        assert parameter.grad is gradient
        assert gradient is None or (gradient == 1).all()
        assert torch.equal(parameter, values)
    assert_scores(scored, model.eval(), tokenize_sft(data, tokenizer), ("loss", "el2n"))


def test_no_gradient_is_kept(model, score, monkeypatch):
    """At most one parameter holds a gradient at any time of the backward pass."""
    held = []
    step = torch.Tensor.register_post_accumulate_grad_hook

    def watched(parameter, hook):
        def watch(p):
            held.append(sum(q.grad is not None for q in model.parameters()))
            hook(p)

        return step(parameter, watch)

    monkeypatch.setattr(torch.Tensor, "register_post_accumulate_grad_hook", watched)
    score(sft_data("text", 4), by="grand", batch_size=4)
    assert held == [1] * len(list(model.parameters()))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_one_forward_pass_for_all_scores(model, score):
    calls = []
    model.model.register_forward_pre_hook(lambda *_: calls.append(None))
    score(sft_data("text"), by=("loss", "perplexity", "el2n"), batch_size=4)
    assert len(calls) == 3
    score(sft_data("text"), by=ALL, batch_size=4)
    assert len(calls) == 6


# ---- parameters -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", [r"layers\.1\.", "lm_head", "norm"])
def test_grand_over_some_parameters(pattern, score, model, tokenizer):
    data = sft_data("prompt-completion")
    scored = score(data, by=("grand",), parameters=pattern)
    part = copy.deepcopy(model).eval()
    for name, parameter in part.named_parameters():
        parameter.requires_grad_(name in chosen_names(model, pattern))
    assert_scores(scored, part, tokenize_sft(data, tokenizer), ("grand",))


def test_parameters_that_there_are_not(score, model):
    with pytest.raises(ValueError, match=r"`parameters` is 'attn_q', which is found in no name.*'model.embed_tokens"):
        score(sft_data("text"), parameters="attn_q")
    with pytest.raises(ValueError, match=r"`parameters` is '\(', no regular expression"):
        score(sft_data("text"), parameters="(")
    with pytest.raises(ValueError, match="No parameter of the model requires a gradient"):
        score(sft_data("text"), model.requires_grad_(False))


def test_what_cannot_be_recorded(score, tmp_path, caplog):
    """A mixture keeps its experts as 3-D parameters: refused, or left out and named."""
    torch.manual_seed(0)
    config = transformers.MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2)
    config._experts_implementation = "eager"  # the fast one knows no float64
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    data = Dataset.from_list([{"input_ids": [3, 4, 5, 6], "uid": 1}, {"input_ids": [7, 8, 9], "uid": 2}])
    with pytest.raises(ValueError, match=r"cannot be recorded .*experts.*Choose others with `parameters`"):
        score(data, model)
    options = {"tokenizer": None, "cache_folder": tmp_path / "kept"}
    scoring = DifficultyScoring(data, model, ("grand",), exact=False, **options)
    scores = scoring.run()
    assert "GraNd leaves out" in caplog.text
    left_out = scores.coverage["uncovered"]
    assert 0 < scores.coverage["coverage"] < 1
    assert all(".mlp." in name for name in left_out)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in left_out)
    expected = [plain_scores(model, row)["grand"] for row in tokenize_sft(data, None)]
    assert scores.columns["grand"] == pytest.approx(expected, rel=1e-5)
    model.requires_grad_(True)
    again = DifficultyScoring(data, model, ("grand",), exact=False, **options).run()
    assert (again.scored, again.coverage) == (0, scores.coverage)
    assert score(data, model, by="el2n")["el2n"][0] > 0


# ---- saved models, adapters, checkpoints ----------------------------------------------------------------------


def test_a_saved_model_and_an_adapter(score, model, tokenizer, tmp_path):
    """GraNd of an adapter is over the adapter, as in training; its base is found by itself."""
    base = save(model, tokenizer, tmp_path / "base")
    data = sft_data("prompt-completion")
    rows = tokenize_sft(data, tokenizer)
    assert_scores(score(data, base, tokenizer=None), model.eval(), rows)
    torch.manual_seed(0)
    adapter = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, lora_alpha=8)
    based = transformers.AutoModelForCausalLM.from_pretrained(base)
    get_peft_model(based, adapter).save_pretrained(tmp_path / "lora")
    saved = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "lora", is_trainable=True).eval()
    scored = score(data, str(tmp_path / "lora"), tokenizer=None)
    assert_scores(scored, saved, rows)
    assert abs(np.array(scored["loss"]) - np.array(score(data)["loss"])).min() > 1e-4
    assert scored["difficulty_model"][0].startswith(f"{tmp_path / 'lora'}@")


def test_two_checkpoints(score, tokenizer, tmp_path):
    models = [tiny_llama(tokenizer, hidden_size=32, seed=seed) for seed in (0, 1)]
    folders = [save(model, tokenizer, tmp_path / f"seed-{i}") for i, model in enumerate(models)]
    data = sft_data("prompt-completion")
    rows = tokenize_sft(data, tokenizer)
    scored = score(data, folders, tokenizer=None)
    per_score = [name for score in ALL for name in (f"{score}_0", f"{score}_1", score)]
    assert scored.column_names == ["prompt", "completion", "uid", "label_tokens", *per_score, "difficulty_model"]
    columns = {name: np.array(scored[name]) for name in per_score}
    for number, model in enumerate(models):
        assert_scores(scored, model.eval(), rows, suffix=f"_{number}")
    for name in ("loss", "el2n", "grand"):
        assert columns[name] == pytest.approx((columns[f"{name}_0"] + columns[f"{name}_1"]) / 2)
    assert columns["perplexity"] == pytest.approx(np.exp(columns["loss"]))
    assert scored["difficulty_model"][0].count("@") == 2
    assert score(data, folders[:1], tokenizer=None).column_names[-5:-1] == list(ALL)


def test_checkpoints_must_tokenise_alike(score, model, tokenizer, tmp_path):
    first, second = save(model, tokenizer, tmp_path / "a"), save(model, tokenizer, tmp_path / "b")
    other = train_tokenizer(["another text altogether"], vocab_size=280)
    other.save_pretrained(tmp_path / "b")
    with pytest.raises(ValueError, match="make different tokens or labels of this data"):
        score(sft_data("text"), [first, second], tokenizer=None)
    assert len(score(sft_data("text"), [first, second])) == 12  # of which the caller says that they are the same
    harmless = copy.deepcopy(tokenizer)
    harmless.pad_token = harmless.eos_token
    harmless.save_pretrained(tmp_path / "b")
    assert len(score(sft_data("text"), [first, second], tokenizer=None)) == 12
    with pytest.raises(ValueError, match="`models` is an empty list"):
        score(sft_data("text"), [])


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
    monkeypatch.setattr("hf_gradkit.scoring.difficulty.load_language_model", None)
    assert DifficultyScoring(data, folders, **options).run().scored == 0


def test_what_is_another_scoring(model, tokenizer, tmp_path):
    def key(data, live=model, **options):
        return DifficultyScoring(data, live, **{"tokenizer": tokenizer, "example_id_column": "uid", **options}).key

    data = sft_data("prompt-completion")
    keys = [
        key(data),
        key(data.select(range(11))),
        key(data.map(lambda row: {"uid": row["uid"] + "x"})),
        key(data, tiny_llama(tokenizer, hidden_size=32, seed=1)),
        key(data, layout=SFTFormat(completion_only_loss=False)),
        key(data, by=("el2n", "loss")),
        key(data, by=("grand",)),
        key(data, by=("grand",), parameters="norm"),
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
