"""Reward margins are kept under a hash of model and data; folds; what is refused or counted."""

import logging
import shutil

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from hf_gradkit.data.tiny import tiny_llama
from hf_gradkit.scoring import (
    Folds,
    PairScoring,
    RewardScorer,
    add_reward_margins,
    check_recorded_reward_model,
    describe_model,
    fold_of,
    load_reward_model,
    recorded_reward_model,
    tokenize_pairs,
)
from pairs import KINDS, make_pairs, one_by_one, pair_dataset, reward_model, rewards_of, save_reward_model


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory):
    return save_reward_model(tokenizer, tmp_path_factory.mktemp("reward") / "model")


@pytest.fixture
def cache(tmp_path):
    return {"cache_folder": tmp_path / "scores"}


@pytest.fixture
def forwards(monkeypatch):
    """Counts the sequences that reward models score."""
    counted = []
    score = RewardScorer.score
    monkeypatch.setattr(RewardScorer, "score", lambda self, items: counted.extend(items) or score(self, items))
    return counted


# ---- kept under a hash ------------------------------------------------------------------------------------------


def test_a_second_call_scores_nothing_and_loads_nothing(tokenizer, saved, cache, forwards, monkeypatch):
    dataset = pair_dataset(7)
    first = add_reward_margins(dataset, str(saved), **cache)
    assert len(forwards) == 14
    monkeypatch.setattr("hf_gradkit.scoring.margins.load_reward_model", None)
    again = add_reward_margins(Dataset.from_list(dataset.to_list()), str(saved), **cache)
    assert len(forwards) == 14
    assert again.to_list() == first.to_list()
    assert add_reward_margins(first, str(saved), **cache).to_list() == first.to_list()  # its own columns are replaced


def test_another_model_data_or_length_is_scored_anew(tokenizer, saved, tmp_path, cache, forwards):
    dataset = pair_dataset(6)
    other = save_reward_model(tokenizer, tmp_path / "other", seed=1)
    changed = dataset.map(lambda row, i: {"chosen": row["chosen"] + ("!" if i == 5 else "")}, with_indices=True)
    keys = set()
    for data, model, options in (
        (dataset, saved, {}),
        (dataset, other, {}),
        (changed, saved, {}),
        (dataset, saved, {"max_length": 9}),
        (dataset, saved, {"dtype": "bfloat16"}),
    ):
        keys.add(PairScoring(data, str(model), **options, **cache).key)
        add_reward_margins(data, str(model), **options, **cache)
    assert len(keys) == 5
    assert len(forwards) == 5 * 12
    # What cannot change a score does not: other columns, where the model is, files beside it.
    moved = shutil.copytree(saved, tmp_path / "moved")
    (moved / "training_args.bin").write_bytes(b"1")
    (moved / "README.md").write_text("a card")
    with_column = dataset.add_column("source", ["web"] * 6)
    assert PairScoring(with_column, str(moved), **cache).key in keys


@pytest.mark.parametrize("change", ["head", "template", "base"])
def test_a_small_change_is_another_model(change, tokenizer, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "copy")
    before = describe_model(str(folder))
    if change == "head":
        model = load_reward_model(str(folder))
        with torch.no_grad():
            model.score.weight[0, 0] += 1e-3
        model.save_pretrained(folder)
    elif change == "template":
        path = folder / "chat_template.jinja"
        path.write_text(path.read_text() + " ")
    else:  # of an adapter, whose own files stay as they are
        peft = get_peft_model(load_reward_model(str(folder)), LoraConfig(r=2, task_type="SEQ_CLS"))
        peft.save_pretrained(tmp_path / "lora")
        folder, before = tmp_path / "lora", describe_model(str(tmp_path / "lora"))
        save_reward_model(tokenizer, tmp_path / "copy", seed=3)
    assert describe_model(str(folder)) != before


def test_the_recorded_model(tokenizer, saved, tmp_path, cache, caplog):
    scored = add_reward_margins(pair_dataset(4), str(saved), **cache)
    assert recorded_reward_model(pair_dataset(4)) is None
    assert recorded_reward_model(scored) == describe_model(str(saved))
    assert recorded_reward_model(scored.to_iterable_dataset()) == describe_model(str(saved))
    assert recorded_reward_model(scored).startswith(f"{saved}@")
    moved = shutil.copytree(saved, tmp_path / "moved")
    check_recorded_reward_model(scored, str(moved))
    check_recorded_reward_model(pair_dataset(4), str(saved))
    other = save_reward_model(tokenizer, tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match=r"was scored by '.*model@\w{12}', but the reward model that was given is"):
        check_recorded_reward_model(scored, str(other))
    with caplog.at_level(logging.WARNING):
        check_recorded_reward_model(scored, reward_model(tokenizer))
    assert "cannot be told" in caplog.text
    live = add_reward_margins(pair_dataset(4), reward_model(tokenizer), tokenizer=tokenizer, **cache)
    check_recorded_reward_model(live, reward_model(tokenizer))
    with pytest.raises(ValueError, match="another one"):
        check_recorded_reward_model(live, reward_model(tokenizer, seed=1))
    both = Dataset.from_list(scored.to_list() + live.to_list())
    with pytest.raises(ValueError, match="was scored by several reward models"):
        recorded_reward_model(both)


# ---- folds ------------------------------------------------------------------------------------------------------


def test_pairs_that_share_a_prompt_share_a_fold():
    kinds = ("prompt", "messages", "messages prompt")
    assignments = {kind: Folds(3).of_rows(pair_dataset(40, kind)) for kind in kinds}
    for assigned in assignments.values():
        assert (assigned[::2] == assigned[1::2]).all()
        assert set(assigned) == {0, 1, 2}
    assert (assignments["messages"] == assignments["messages prompt"]).all()
    plain = Folds(3).of_rows(Dataset.from_list([{"chosen": "why ? a", "rejected": "why ? b"}] * 2))
    assert plain[0] == plain[1] == fold_of("why ?", 3)
    rows = [{**row, "prompt": [{**row["prompt"][0], "name": None}]} for row in make_pairs(40, "messages prompt")]
    assert (Folds(3).of_rows(Dataset.from_list(rows)) == assignments["messages"]).all()
    assert (Folds(3, seed=1).of_rows(pair_dataset(40, "messages")) != assignments["messages"]).any()
    assert fold_of("why?", 5) == 4  # it must never change: data that was scored depends on it


def test_each_pair_is_scored_by_the_model_of_its_fold(tokenizer, tmp_path, cache, forwards):
    folds, dataset = Folds(3), pair_dataset(20, "prompt")
    for fold in range(3):
        save_reward_model(tokenizer, folds.folder(tmp_path / "folds", fold), seed=fold)
    with pytest.raises(ValueError, match="did not come to its end"):
        add_reward_margins(dataset, str(tmp_path / "folds"), **cache)
    folds.write(tmp_path / "folds")
    scored = add_reward_margins(dataset, str(tmp_path / "folds"), **cache)
    sequences = tokenize_pairs(dataset, tokenizer, None)
    of_models = [one_by_one(reward_model(tokenizer, seed=k), sequences).reshape(-1, 2).numpy() for k in range(3)]
    assigned = folds.of_rows(dataset)
    expected = np.array([of_models[fold][row] for row, fold in enumerate(assigned)])
    assert rewards_of(scored) == pytest.approx(expected, abs=1e-5)
    assert len(forwards) == 40
    add_reward_margins(dataset, str(tmp_path / "folds"), **cache)
    assert len(forwards) == 40
    check_recorded_reward_model(scored, str(tmp_path / "folds"))
    save_reward_model(tokenizer, folds.folder(tmp_path / "folds", 2), seed=9)
    with pytest.raises(ValueError, match="another one"):
        check_recorded_reward_model(scored, str(tmp_path / "folds"))
    shutil.rmtree(folds.folder(tmp_path / "folds", 1))
    with pytest.raises(ValueError, match="the model of fold 1 is not there"):
        add_reward_margins(dataset, str(tmp_path / "folds"), **cache)


@pytest.mark.parametrize("folds", [1, 0, 2.0, True])
def test_numbers_of_folds_that_are_none(folds):
    with pytest.raises(ValueError, match="`folds` must be an integer of at least 2"):
        Folds(folds)


# ---- what is refused, or counted --------------------------------------------------------------------------------


def test_models_that_are_no_reward_models(tokenizer, saved, tmp_path, cache):
    dataset = pair_dataset(4)
    two = save_reward_model(tokenizer, tmp_path / "two", labels=2)
    with pytest.raises(ValueError, match=r"two' has 2 labels. A reward model has one"):
        add_reward_margins(dataset, str(two), **cache)
    with pytest.raises(ValueError, match="has 2 labels"):
        add_reward_margins(dataset, reward_model(tokenizer, labels=2), tokenizer=tokenizer, **cache)
    tiny_llama(tokenizer, hidden_size=32).save_pretrained(tmp_path / "causal")
    tokenizer.save_pretrained(tmp_path / "causal")
    with pytest.raises(ValueError, match=r"causal' has no reward head .* Train a reward model on it first"):
        add_reward_margins(dataset, str(tmp_path / "causal"), **cache)
    causal = LlamaForCausalLM.from_pretrained(tmp_path / "causal")
    get_peft_model(causal, LoraConfig(r=2, task_type="CAUSAL_LM")).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"adapter' has no reward head .* task_type=.SEQ_CLS"):
        add_reward_margins(dataset, str(tmp_path / "adapter"), **cache)
    with pytest.raises(ValueError, match=r"The model folder './gone' does not exist"):
        add_reward_margins(dataset, "./gone", **cache)
    with pytest.raises(ValueError, match="'someone/gone' is neither a folder here"):
        add_reward_margins(dataset, "someone/gone", **cache)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty' holds no weights"):
        add_reward_margins(dataset, str(tmp_path / "empty"), **cache)


def test_conversations_without_a_chat_template(tokenizer, tmp_path, cache):
    folder = save_reward_model(tokenizer, tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="tokenizer of the reward model has no chat template"):
        add_reward_margins(pair_dataset(4, "messages"), str(folder), **cache)
    add_reward_margins(pair_dataset(4, "plain"), str(folder), **cache)


def test_columns_that_are_missing_or_taken(saved, cache):
    dataset = pair_dataset(4)
    with pytest.raises(ValueError, match=r"has no 'chosen'. Did you mean 'chosn'\? Its columns: 'chosn', 'rejected'"):
        add_reward_margins(dataset.rename_column("chosen", "chosn"), str(saved), **cache)
    with pytest.raises(ValueError, match=r"has columns \['reward_margin'\] already, which no scoring"):
        add_reward_margins(dataset.add_column("reward_margin", [0.0] * 4), str(saved), **cache)
    with pytest.raises(ValueError, match="`column` is 'margin', a name that TRL's RewardTrainer takes"):
        add_reward_margins(dataset, str(saved), column="margin", **cache)
    with pytest.raises(ValueError, match="is a IterableDataset"):
        add_reward_margins(dataset.to_iterable_dataset(), str(saved), **cache)
    with pytest.raises(ValueError, match="has no rows"):
        add_reward_margins(dataset.select([]), str(saved), **cache)
    with pytest.raises(ValueError, match="`max_length` must be at least 1"):
        add_reward_margins(dataset, str(saved), max_length=0, **cache)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("column", ["chosen", "rejected"])
def test_an_empty_completion_names_the_row(kind, column, saved, cache):
    rows = make_pairs(6, kind)
    value = rows[3][column]
    rows[3][column] = " \n" if isinstance(value, str) else [*value[:-1], {"role": "assistant", "content": ""}]
    with pytest.raises(ValueError, match=f"Row 3 of the data has an empty '{column}' completion"):
        add_reward_margins(Dataset.from_list(rows), str(saved), **cache)


@pytest.mark.parametrize("kind", KINDS)
def test_identical_completions_are_counted(kind, saved, cache, caplog):
    rows = make_pairs(6, kind)
    for number in (1, 4):
        rows[number]["rejected"] = rows[number]["chosen"]
    with caplog.at_level(logging.WARNING):
        scored = add_reward_margins(Dataset.from_list(rows), str(saved), **cache)
    assert "2 of 6 pairs have the same chosen and rejected completion: their margin is zero" in caplog.text
    assert scored["reward_margin"][1] == pytest.approx(0, abs=1e-5)


def test_a_broken_model_names_the_rows(tokenizer, saved, cache):
    model = reward_model(tokenizer)
    rows = make_pairs(6)
    rows[2]["rejected"] += " zzz"
    with torch.no_grad():
        model.model.embed_tokens.weight[tokenizer("zzz")["input_ids"][0]] = float("nan")
    with pytest.raises(FloatingPointError, match=r"'reward' of rows \[2\] of the data is not a finite number"):
        add_reward_margins(Dataset.from_list(rows), model, tokenizer=tokenizer, **cache)


def test_a_reward_model_that_zero3_has_partitioned_is_refused(tokenizer, tmp_path):
    model = reward_model(tokenizer)
    model.score.weight.ds_id = 0  # how DeepSpeed marks what it took apart
    with pytest.raises(ValueError, match="loaded in parts, as ZeRO-3 loads every model"):
        add_reward_margins(pair_dataset(4), model, tokenizer=tokenizer, cache_folder=tmp_path)
