"""Tokens and labels are those of TRL's training, and per-token figures those of plain logits in float64."""

import copy

import numpy as np
import pytest
import torch
import transformers
import trl
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from difficulty_helpers import plain_log_probs, sft_data
from gradient_helpers import SMALL, build
from helpers import make_trainer
from hf_gradkit.data.tiny import tiny_llama
from hf_gradkit.scoring import (
    SFTFormat,
    TokenRow,
    TokenScorer,
    load_scores,
    score_rows,
    token_statistics,
    tokenize_sft,
    vocabulary,
)
from hf_gradkit.scoring.language_models import check_rows
from hf_gradkit.scoring.tokens import STATISTICS, collate

KINDS = ["text", "prompt-completion", "chat", "chat of two turns", "chat prompt-completion", "from and value"]


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny_llama(tokenizer, hidden_size=32).eval()


def trained_on(tokenizer, folder, dataset, **options):
    """Return the tokens and labels that TRL's trainer holds."""
    trainer = make_trainer(trl.SFTTrainer, trl.SFTConfig, copy.deepcopy(tokenizer), folder, dataset, **options)
    return [(row["input_ids"], row["labels"]) for row in trainer.train_dataset]


def tokens(tokenizer, dataset, **options):
    return [(r.input_ids.tolist(), r.labels.tolist()) for r in tokenize_sft(dataset, tokenizer, SFTFormat(**options))]


# ---- tokens and labels ----------------------------------------------------------------------------------------


def test_the_defaults_are_trls():
    config = trl.SFTConfig("unused", use_cpu=True, bf16=False)
    for name, value in vars(SFTFormat()).items():
        assert getattr(config, name) == value


@pytest.mark.parametrize(
    ("kind", "options"),
    [(kind, {}) for kind in KINDS]
    + [
        ("prompt-completion", {"completion_only_loss": False}),
        ("chat prompt-completion", {"completion_only_loss": False, "max_length": None}),
        ("chat of two turns", {"assistant_only_loss": True}),
        ("chat prompt-completion", {"assistant_only_loss": True, "completion_only_loss": False}),
        ("text", {"max_length": 9}),
        ("prompt-completion", {"max_length": 17, "truncation_mode": "keep_end"}),
        ("text", {"eos_token": "<|user|>"}),
    ],
)
def test_tokens_and_labels_are_those_of_training(kind, options, tokenizer, tmp_path):
    dataset = sft_data(kind)
    assert tokens(tokenizer, dataset, **options) == trained_on(tokenizer, tmp_path, dataset, **options)
    assert tokenizer.eos_token == "<|end|>"


def test_what_training_drops_is_still_there(tokenizer, tmp_path):
    """TRL drops examples of which the cut leaves the prompt only; every row needs its score or the lack of it."""
    dataset = sft_data("prompt-completion")
    ours = tokens(tokenizer, dataset, max_length=6)
    learnt = [row for row in ours if any(label != -100 for label in row[1])]
    assert len(ours) == len(dataset) > len(learnt) > 0
    assert learnt == trained_on(tokenizer, tmp_path, dataset, max_length=6)


def test_tokenised_data_is_taken_as_it_is(tokenizer, tmp_path):
    rows = tokenize_sft(sft_data("prompt-completion"), tokenizer)
    from_list = sft_data("text").from_list
    dataset = from_list([{"input_ids": r.input_ids, "labels": r.labels} for r in rows])
    assert tokens(tokenizer, dataset) == [(r.input_ids.tolist(), r.labels.tolist()) for r in rows]
    unlabelled = dataset.remove_columns("labels")
    assert tokens(tokenizer, unlabelled) == trained_on(tokenizer, tmp_path, unlabelled)
    assert [r.row for r in rows] == list(range(12))
    broken = from_list([{"input_ids": [1, 2, 3], "labels": [1, 2]}])
    with pytest.raises(ValueError, match="Row 0 of the data has 3 `input_ids` and 2 `labels`"):
        tokenize_sft(broken, tokenizer)


def refused(kind="text", columns=None, options=None, rows=(), **attributes):
    return kind, columns or {}, options or {}, rows, attributes


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (refused(columns={"text": "txt"}), "Did you mean 'text'.* Its columns: 'txt', 'uid'"),
        (refused("prompt-completion", {"completion": "chosen", "uid": "rejected"}), "preference pairs"),
        (refused("prompt-completion", {"prompt": "question"}), "Its columns: 'question', 'completion', 'uid'"),
        (refused("text", {"uid": "seq_lengths"}), "The data is packed"),
        (refused("chat", chat_template=None), "the tokenizer has no chat template"),
        (refused("text", eos_token=None), "The tokenizer has no end token"),
        (refused("text", options={"assistant_only_loss": True}), "the data has no conversations"),
        (refused("text", options={"eos_token": "<nowhere>"}), "not in the tokenizer's vocabulary"),
        (refused("text", rows=[{"text": None}]), "Row 12 of the data has an empty 'text': None"),
        (refused("chat", rows=[{"messages": []}]), r"Row 12 of the data has an empty 'messages': \[\]"),
    ],
)
def test_data_that_cannot_be_tokenised(case, message, tokenizer):
    kind, columns, options, rows, attributes = case
    dataset = sft_data(kind)
    dataset = dataset.from_list([*dataset, *rows]).rename_columns(columns)
    tokenizer = copy.deepcopy(tokenizer)
    for name, value in attributes.items():
        setattr(tokenizer, name, value)
    with pytest.raises(ValueError, match=message):
        tokenize_sft(dataset, tokenizer, SFTFormat(**options))


def test_a_template_that_marks_no_assistant(tokenizer):
    silent = copy.deepcopy(tokenizer)
    silent.chat_template = silent.chat_template.replace("== 'assistant'", "== 'tool'")
    with pytest.raises(ValueError, match="at least one example has no assistant"):
        tokenize_sft(sft_data("chat"), silent, SFTFormat(assistant_only_loss=True))


@pytest.mark.parametrize("options", [{"max_length": 1}, {"max_length": True}, {"truncation_mode": "keep_sart"}])
def test_formats_that_are_none(options):
    with pytest.raises(ValueError, match=f"`{next(iter(options))}`"):
        SFTFormat(**options)


def test_rows_that_do_not_fit_the_model(model):
    with pytest.raises(ValueError, match="gives token 300, and the model knows 300"):
        check_rows([TokenRow(np.array([1, 300]), np.array([1, 300]))], model)
    long = np.ones(513, dtype=np.int64)
    with pytest.raises(ValueError, match="Row 7 of the data has 513 tokens, and the model can read 512"):
        check_rows([TokenRow(long, long, 7)], model)


# ---- figures --------------------------------------------------------------------------------------------------


def expected_figures(model, row) -> dict[str, torch.Tensor]:
    """Return every figure at the labels of one example by its definition, in float64."""
    with torch.no_grad():
        ids, labels = torch.tensor(row.input_ids)[None], torch.tensor(row.labels)[1:]
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1][labels != -100]
    log_p, label = plain_log_probs(model, row)
    p = log_p.exp()
    mean = (p * log_p).sum(1)
    return {
        "log_probs": log_p[torch.arange(len(label)), label],
        "entropy": -mean,
        "log_sum_sq_probs": p.square().sum(1).log(),
        "mean_logits": logits.mean(1),
        "is_top1": (log_p.argmax(1) == label).double(),
        "log_prob_variance": (p * (log_p - mean[:, None]).square()).sum(1),
    }


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "cohere"])
def test_figures_are_those_of_plain_logits(family, tokenizer):
    """Gemma 2 caps its logits, Cohere scales them."""
    if family == "cohere":
        torch.manual_seed(0)
        config = transformers.CohereConfig(**{**SMALL, "logit_scale": 0.3})
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
    else:
        model = build(family)
    rows = []
    for number, length in enumerate((12, 3, 7, 2)):
        ids = np.random.default_rng(number).integers(1, 97, length)
        rows.append(TokenRow(ids, np.where(np.arange(length) % 3 == 2, -100, ids), number))
    slow = copy.deepcopy(model).double()
    # Sharp predictions as well: large logits, at which differences of sums cancel.
    for factor in (1.0, 8.0):
        for one in (model, slow):
            one.get_output_embeddings().weight.data.mul_(factor)
        with token_statistics(model, STATISTICS) as statistics, torch.no_grad():
            found = statistics(rows)
        for number, row in enumerate(rows):
            for name, expected in expected_figures(slow, row).items():
                values = torch.from_numpy(found.by_example(name)[number]).double()
                assert torch.allclose(values, expected, rtol=1e-4, atol=1e-5), (name, number)


@pytest.mark.parametrize("tile", [(4, 64), (2, 1), (256, 2048)])
def test_figures_are_the_same_in_tiles(tile, monkeypatch):
    """Some positions and tokens at a time, with the largest logits last, and ties, of which the first is the top."""
    monkeypatch.setitem(vocabulary.TILES, "cpu", tile)
    hidden, weight = torch.randn(9, 32), torch.randn(300, 32) * torch.linspace(0.1, 3, 300)[:, None]
    weight[290:] = weight[289]
    bias, labels = torch.randn(300), torch.randint(0, 300, (9,))
    bias[289:] = 30.0
    labels[:2] = torch.tensor([289, 290])
    z = hidden.double() @ weight.double().T + bias
    log_p = z.log_softmax(-1)
    mean = (log_p.exp() * log_p).sum(1, keepdim=True)
    expected = {
        "log_probs": log_p[torch.arange(9), labels],
        "entropy": -mean[:, 0],
        "log_sum_sq_probs": (2 * log_p).logsumexp(1),
        "mean_logits": z.mean(1),
        "is_top1": labels == (hidden @ weight.T + bias).argmax(1),
        "log_prob_variance": (log_p.exp() * (log_p - mean).square()).sum(1),
    }
    found = vocabulary.head_figures(hidden, weight, bias, labels, vocabulary.Logits(), tuple(expected))
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert torch.allclose(found[name].double(), values.double(), rtol=1e-4, atol=1e-6), name
    some = vocabulary.head_figures(hidden, weight, bias, labels, vocabulary.Logits(), ("is_top1",))
    assert set(some) == {"log_probs", "is_top1"}
    none = vocabulary.head_figures(hidden[:0], weight, bias, labels[:0], vocabulary.Logits(), ("entropy",))
    assert {name: len(values) for name, values in none.items()} == {"log_probs": 0, "entropy": 0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_figures_with_and_without_gradient_are_the_same(dtype, model):
    """TRL's own function with gradients, `head_figures` without: the same products, the same figures."""
    model = copy.deepcopy(model).to(dtype)
    ids = np.random.default_rng(0).integers(1, 97, 40)
    rows = [TokenRow(ids, ids), TokenRow(ids[:9], ids[:9])]
    with token_statistics(model, STATISTICS) as statistics:
        with torch.no_grad():
            without = statistics(rows)
        with_gradient = statistics(rows)
    with token_statistics(model, ("log_probs", "entropy"), one_pass=True) as statistics, torch.no_grad():
        some = statistics(rows)
    for name in ("log_probs", "entropy"):  # to the last bit, whatever else is asked for
        assert torch.equal(getattr(some, name), getattr(without, name))
    assert some.log_prob_variance is None
    assert with_gradient.log_probs.requires_grad
    assert not without.log_probs.requires_grad
    for name in STATISTICS:
        pair = [torch.as_tensor(np.concatenate(list(of.by_example(name)))) for of in (without, with_gradient)]
        assert torch.allclose(*pair, rtol=1e-4, atol=1e-5), name


def test_examples_without_labels_are_nan_and_nothing_else_is(model):
    ids = np.arange(1, 6)
    rows = [TokenRow(ids, ids), TokenRow(ids, np.full(5, -100)), TokenRow(ids[:1], ids[:1])]
    assert [row.label_tokens for row in rows] == [4, 0, 0]
    with token_statistics(model) as statistics, torch.no_grad():
        assert statistics(rows).losses().isnan().tolist() == [False, True, True]
    assert collate([rows[2]])["input_ids"].shape == (1, 2)


def test_the_model_is_as_it_was(model, tokenizer):
    rows = tokenize_sft(sft_data("text", 2), tokenizer)
    with pytest.raises(IndexError), token_statistics(model) as statistics:
        statistics(rows[5:][0])
    assert "forward" not in vars(model)
    trl.trainer.utils.add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    own = model.forward
    with token_statistics(model, ["is_top1"]) as statistics:
        found = statistics(rows)
        assert found.entropy is None
        assert found.is_top1 is not None
    assert model.forward == own
    del model.forward


def test_adapters(model, tokenizer):
    rows = tokenize_sft(sft_data("text", 3), tokenizer)
    adapter = LoraConfig(target_modules=["v_proj", "down_proj"], init_lora_weights=False, lora_alpha=400)
    lora = get_peft_model(copy.deepcopy(model), adapter)
    with token_statistics(lora) as statistics, torch.no_grad():
        losses = statistics(rows).losses()
        with lora.disable_adapter():
            of_base = statistics(rows).losses()
    for number, row in enumerate(rows):
        log_p, label = plain_log_probs(lora, row)
        assert losses[number].item() == pytest.approx(-log_p[torch.arange(len(label)), label].mean().item(), rel=1e-5)
    with token_statistics(model) as statistics, torch.no_grad():
        assert torch.equal(of_base, statistics(rows).losses())
    assert (losses - of_base).abs().min() > 5e-3
    on_head = get_peft_model(copy.deepcopy(model), LoraConfig(target_modules=["lm_head"]))
    prompted = get_peft_model(copy.deepcopy(model), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    for refused, message in ((on_head, "adapter is on the output head"), (prompted, "tokens of its own before")):
        with pytest.raises(ValueError, match=message):
            token_statistics(refused).__enter__()


def test_a_figure_that_there_is_not(model):
    with pytest.raises(ValueError, match=r"no per-token figure 'entropi'\. Did you mean 'entropy'"):
        token_statistics(model, ["entropi"]).__enter__()


# ---- through the engine ---------------------------------------------------------------------------------------


def test_tokens_are_scored_through_the_engine(model, tokenizer, tmp_path):
    """Arrays of any length, in batches of any size, some of them empty: what is kept is what one example gives."""
    rows = tokenize_sft(sft_data("prompt-completion"), tokenizer, SFTFormat(max_length=9))
    assert 0 in [row.label_tokens for row in rows]
    kept = {}
    with token_statistics(model, ["entropy"]) as statistics:
        for size in (1, 5):
            scorer = TokenScorer(statistics, ["log_probs", "entropy"])
            kept[size] = score_rows(rows, scorer, tmp_path / f"{size}", "key", size).columns
    again = load_scores(tmp_path / "5", "key", ("log_probs", "entropy"), len(rows))
    for number, row in enumerate(rows):
        log_p, label = plain_log_probs(model, row)
        for found in (kept[1], kept[5], again):
            assert found["log_probs"][number].dtype == np.float32
            assert len(found["entropy"][number]) == row.label_tokens
            expected = log_p[torch.arange(len(label)), label].detach().numpy()
            assert np.allclose(found["log_probs"][number], expected, atol=1e-5)


def test_a_batch_of_nothing_but_empty_rows(model, tmp_path):
    ids = np.arange(1, 4)
    rows = [TokenRow(ids, np.full(3, -100))] * 2 + [TokenRow(ids[:2], ids[:2])]
    with token_statistics(model) as statistics:
        scores = score_rows(rows, TokenScorer(statistics, ["log_probs"]), tmp_path, "key", 2)
    assert [len(values) for values in scores.columns["log_probs"]] == [0, 0, 1]
