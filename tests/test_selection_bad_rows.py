"""What is wrong with a row names the row of the user's data, although prompts are scored once and pairs twice."""

import random

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from helpers import WORDS
from hf_gradkit.data.tiny import train_tokenizer
from hf_gradkit.scoring.engine import NonFiniteScoreError
from hf_gradkit.selection import IFD, SELECTORS, FiFA
from pair_helpers import OURS, dpo, save_policy
from pairs import KINDS, make_pairs

BAD = 20  # the row with the word that breaks the model; its prompt is that of row 21 too


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tokenizer = train_tokenizer([" ".join(WORDS), *["qqqq qqqq"] * 50], vocab_size=320)
    (number,) = tokenizer("qqqq", add_special_tokens=False)["input_ids"][:1]
    save_policy(folder / "whole", tokenizer)
    model = AutoModelForCausalLM.from_pretrained(folder / "whole")
    with torch.no_grad():
        model.get_input_embeddings().weight[number] = float("nan")
    model.save_pretrained(folder / "broken")
    tokenizer.save_pretrained(folder / "broken")
    return folder


def rows(column: str | None = None) -> Dataset:
    """Return 24 pairs, two with each prompt; the word is in this column, if there is one."""
    rng, made = random.Random(0), []
    for i in range(24):
        row = {name: " ".join(rng.choices(WORDS, k=4)) for name in ("prompt", "chosen", "rejected")}
        made.append(row | {"reward_margin": float(i)} | ({"prompt": made[-1]["prompt"]} if i % 2 else {}))
    bad = made[BAD : BAD + 2] if column == "prompt" else [made[BAD]]
    for row in bad if column else ():
        row[column] = f"qqqq {row[column]}"
    return Dataset.from_list(made)


def embed(rows):
    return [[np.nan if "qqqq" in row["prompt"] else len(row["prompt"]), 1.0] for row in rows]


def judge(rows):
    return [np.nan if "qqqq" in row["prompt"] else 1.0 for row in rows]


@pytest.mark.parametrize(
    ("role", "component", "column", "named"),
    [
        ("embedder", embed, "prompt", "`embedder` of rows [20] of the data"),
        ("embedder", {"by": "transformers", "model": "broken"}, "prompt", "'embedding' of rows [20] of the data"),
        ("quality", judge, "prompt", "`quality` of rows [20, 21] of the data"),
        ("quality", {"by": "perplexity", "model": "broken"}, "prompt", "'log_prob' of rows [20] of the data"),
        ("margin", {"by": "implicit", "model": "broken", "reference": "whole"}, "chosen", "'log_prob' of rows [20]"),
    ],
)
def test_the_rows_are_the_user_s(role, component, column, named, models, tmp_path, monkeypatch):
    monkeypatch.chdir(models)
    selector = FiFA(count=3, k=2, cache_folder=tmp_path, **{role: component})
    with pytest.raises(NonFiniteScoreError) as caught:
        selector.select(rows(column))
    assert named in str(caught.value)
    assert ("weights may be broken" in str(caught.value)) == (not callable(component))


def test_the_rows_of_ifd(models, tmp_path):
    data = rows("chosen").rename_column("chosen", "completion").remove_columns("rejected")
    with pytest.raises(NonFiniteScoreError, match=r"of rows \[20\] of the data"):
        IFD(count=3, model=str(models / "broken"), cache_folder=tmp_path).select(data)


LONG = " the cat" * 200  # the model reads 512 tokens


@pytest.mark.parametrize(
    ("column", "components"),
    [
        ("chosen", {"margin": {"by": "implicit", "model": "whole", "reference": "whole"}}),
        ("rejected", {"margin": {"by": "implicit", "model": "whole", "reference": "whole"}}),
        ("prompt", {"quality": {"by": "perplexity", "model": "whole", "max_length": 2048}}),
    ],
)
def test_what_is_too_long_for_the_model(column, components, models, tmp_path, monkeypatch):
    monkeypatch.chdir(models)
    made = rows().to_list()
    for row in made[BAD : BAD + 2] if column == "prompt" else [made[BAD]]:
        row[column] += LONG
    with pytest.raises(ValueError, match=r"Row 20 of the data has \d+ tokens, and the model can read 512"):
        FiFA(count=3, k=2, cache_folder=tmp_path, **{"embedder": None, **components}).select(Dataset.from_list(made))


def test_what_is_too_long_for_ifd(models, tmp_path):
    made = rows().rename_column("chosen", "completion").remove_columns("rejected").to_list()
    made[BAD]["completion"] += LONG
    with pytest.raises(ValueError, match="Row 20 of the data has"):
        IFD(count=3, model=str(models / "whole"), cache_folder=tmp_path).select(Dataset.from_list(made))


@pytest.mark.parametrize("kind", ["messages", "messages prompt"])
def test_an_empty_prompt_of_messages(kind, models, tmp_path):
    made = [row | {"reward_margin": float(i)} for i, row in enumerate(make_pairs(12, kind))]
    if kind == "messages":
        made[7] |= {side: made[7][side][1:] for side in ("chosen", "rejected")}
    else:
        made[7]["prompt"] = []
    margin = {"by": "implicit", "model": str(models / "whole"), "reference": str(models / "whole")}
    with pytest.raises(ValueError, match="Row 7 of the data has no prompt"):
        FiFA(count=3, k=2, margin=margin, cache_folder=tmp_path).select(Dataset.from_list(made))


# ---- answers that are missing ---------------------------------------------------------------------------------


MISSING = [*((kind, None) for kind in KINDS), *zip(KINDS, ("", " ", [], []), strict=True)]


@pytest.mark.parametrize(("kind", "empty"), MISSING)
@pytest.mark.parametrize("column", ["chosen", "rejected"])
@pytest.mark.parametrize("by", ["fifa", "random", "length"])
def test_a_missing_answer_is_said_before_anything_is_scored(by, column, empty, kind, tmp_path):
    made = [row | {"reward_margin": float(i)} for i, row in enumerate(make_pairs(12, kind))]
    made[7][column] = empty
    options = {"embedder": refuse, "quality": refuse} if by == "fifa" else {}
    selector = SELECTORS[by](count=3, cache_folder=tmp_path, **options)
    with pytest.raises(ValueError) as caught:
        selector.select(Dataset.from_list(made))
    assert f"Row 7 of the data has an empty {column!r} completion: {empty!r}." in str(caught.value)
    assert "remove the row" in str(caught.value)


def test_messages_of_another_form(tmp_path):
    made = [{s: [{"from": "gpt", "value": f"{s} {i}"}] for s in ("chosen", "rejected")} for i in range(9)]
    with pytest.raises(
        ValueError, match="messages of row 0 of the data have no 'content', but the keys 'from', 'value'"
    ):
        SELECTORS["random"](count=3).select(Dataset.from_list(made))


def refuse(rows):
    raise AssertionError("scored")


def test_a_missing_answer_in_the_trainer_s_data(policy, tmp_path):
    made = [row | {"reward_margin": float(i)} for i, row in enumerate(make_pairs(12, "prompt"))]
    made[7]["chosen"] = None
    options = {"fraction": 0.5, "embedder": None, "cache_folder": str(tmp_path / "cache")}
    with pytest.raises(ValueError, match=r"Row 7 of the data has an empty 'chosen' completion: None\."):
        dpo(*OURS, policy, tmp_path, Dataset.from_list(made), data_filter="fifa", data_filter_kwargs=options)
    assert not (tmp_path / "_data_filter").exists()
