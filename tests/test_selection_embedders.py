"""Embedders and neighbours, each against a slow, plain computation with the real model."""

import logging
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import LlamaForCausalLM

from hf_gradkit.data.tiny import tiny_llama
from hf_gradkit.selection.embedders import HiddenStates, SentenceTransformers
from hf_gradkit.selection.nearest import find_distances
from hf_gradkit.selection.neighbours import neighbour_distances
from hf_gradkit.selection.work import Work
from pairs import pair_dataset


@pytest.fixture(scope="module")
def models(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("models")
    tiny_llama(tokenizer, hidden_size=32).save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "policy")
    return folder


@pytest.fixture
def work(tmp_path):
    return Work(tmp_path / "work", batch_size=3)


# ---- embedders ------------------------------------------------------------------------------------------------


def test_hidden_states_are_the_mean_over_the_tokens(models, tokenizer, work):
    dataset = pair_dataset(9, "prompt")
    values = HiddenStates(str(models / "policy")).of_dataset(dataset, work)
    model = LlamaForCausalLM.from_pretrained(models / "policy").double().model
    for vector, text in zip(values, dataset["prompt"], strict=True):
        with torch.no_grad():
            mean = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        assert vector == pytest.approx((mean / mean.norm()).numpy(), abs=1e-5)


def test_hidden_states_cut_at_the_end(models, tokenizer, work):
    dataset = pair_dataset(4, "prompt")
    short = HiddenStates(str(models / "policy"), max_length=2).of_dataset(dataset, work)
    ids = [tokenizer(text)["input_ids"][:2] for text in dataset["prompt"]]
    cut = Dataset.from_dict({"prompt": tokenizer.batch_decode(ids), "chosen": ["a"] * 4, "rejected": ["b"] * 4})
    assert HiddenStates(str(models / "policy")).of_dataset(cut, work) == pytest.approx(short, abs=1e-5)


def test_sentence_transformers(models, work, tmp_path):
    library = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    part = Transformer(str(models / "policy"))
    model = library.SentenceTransformer(modules=[part, Pooling(32, pooling_mode="mean")], device="cpu")
    model.save(str(tmp_path / "sentences"))
    dataset = pair_dataset(9, "prompt")
    values = SentenceTransformers(str(tmp_path / "sentences")).of_dataset(dataset, work)
    alone = np.stack([model.encode([text])[0] for text in dataset["prompt"]])
    assert values == pytest.approx(alone / np.linalg.norm(alone, axis=1, keepdims=True), abs=1e-5)
    before = list(work.folder.iterdir())
    part.auto_model.double()
    model.save(str(tmp_path / "sentences"))  # the same name, other content
    SentenceTransformers(str(tmp_path / "sentences")).of_dataset(dataset, work)
    assert len(list(work.folder.iterdir())) == len(before) + 1


def test_a_library_that_is_missing(monkeypatch, work):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match=r'pip install "hf-gradkit\[embeddings\]"'):
        SentenceTransformers("some/model").of_dataset(pair_dataset(4, "prompt"), work)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r'pip install "hf-gradkit\[faiss\]"'):
        find_distances(np.zeros((9, 2), dtype=np.float32), 2, "faiss", 0, work)


# ---- neighbours -----------------------------------------------------------------------------------------------


def test_faiss_says_how_much_it_found(work):
    pytest.importorskip("faiss")
    points = np.random.default_rng(0).standard_normal((3000, 16)).astype(np.float32)
    points[1] = points[0]
    distances, facts = find_distances(points, 5, "faiss", 0, work)
    exact = neighbour_distances(points, 5)
    assert facts["search"] == "faiss"
    assert 0.9 < facts["recall"] <= 1
    assert (distances >= exact - 1e-3).all()  # what is missed makes distances larger, never smaller
    sample = np.sort(np.random.default_rng([0, 3]).permutation(3000)[:1000])
    assert facts["inflation"] == pytest.approx((distances[sample] / exact[sample]).mean(), abs=1e-5)
    assert (find_distances(points, 5, "faiss", 0, work)[0] == distances).all()


@pytest.mark.parametrize(("dimension", "warned"), [(2, False), (128, True)])
def test_a_low_recall_is_warned_about(work, caplog, dimension, warned):
    pytest.importorskip("faiss")
    points = np.random.default_rng(0).standard_normal((4000, dimension)).astype(np.float32)
    with caplog.at_level(logging.WARNING):
        _, facts = find_distances(points, 5, "faiss", 0, work)
    assert (facts["recall"] < 0.9) == warned
    assert ("set `neighbours` to 'exact'" in caplog.text) == warned


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_inflation_of_points_with_many_copies(work):
    pytest.importorskip("faiss")
    points = np.random.default_rng(0).standard_normal((300, 4)).astype(np.float32)
    distances, facts = find_distances(np.repeat(points, 4, axis=0), 2, "faiss", 0, work)
    assert not distances.any()
    assert facts["inflation"] == 1  # there is no distance to compare
    some = np.concatenate([np.repeat(points[:200], 4, axis=0), points[200:]])
    distances, facts = find_distances(some, 2, "faiss", 0, work)
    exact = neighbour_distances(some, 2)
    apart = exact > 0
    assert 0 < apart.sum() < len(some)
    assert facts["inflation"] == pytest.approx((distances[apart] / exact[apart]).mean(), abs=1e-5)


def test_auto_is_exact_for_small_data(work):
    points = np.random.default_rng(0).standard_normal((300, 4)).astype(np.float32)
    distances, facts = find_distances(points, 2, "auto", 0, work)
    assert facts == {"search": "exact"}
    assert (distances == neighbour_distances(points, 2)).all()
