"""`gradkit report` on what other commands leave: two models on the same data, selections, audited models."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from scipy.stats import binomtest

from difficulty_helpers import save, sft_data
from hf_gradkit.cli import report, score, select
from hf_gradkit.data.tiny import tiny_llama
from hf_gradkit.reporting.comparison import Scored, compare, comparison_blocks, scatter_figure, sign_test
from hf_gradkit.reporting.page import write_report
from pair_helpers import pairs


def scored(name: str, rows: list[dict]) -> Scored:
    return Scored(name, f"{name}@1", Dataset.from_list(rows))


ACCURACY = {"a": (1.0, 0.5), "b": (1.0, 1.0), "c": (0.25, 1.0), "d": (0.0, 0.5), "e": (1.0, 0.0)}


def accuracies(which: int, order: str) -> list[dict]:
    return [{"example_id": key, "text": f"text of {key}", "token_accuracy": ACCURACY[key][which]} for key in order]


def test_examples_are_matched_by_their_ids():
    (found,) = compare(scored("old", accuracies(0, "abcde")), scored("new", accuracies(1, "edcba")))
    assert found.after.tolist() == [ACCURACY[key][1] for key in "abcde"]
    assert found.gain.tolist() == [-0.5, 0.0, 0.75, 0.5, -1.0]
    assert found.table().tolist() == [[1, 2], [1, 1]]
    points = scatter_figure(found).axes[0].collections
    assert [len(one.get_offsets()) for one in points] == [2, 2]  # better, worse


def test_what_got_better_and_what_got_worse_is_named():
    right, picture, examples = comparison_blocks(
        [scored("old", accuracies(0, "abcde")), scored("new", accuracies(1, "abcde"))]
    )
    assert right.rows == (("right before", "1", "2"), ("wrong before", "1", "1"))
    assert "2 examples were right before and are wrong now, 1 the other way" in right.text[-1]
    assert "Of 5 examples, 2 got better, 2 got worse." in right.text
    assert picture.draw is not None
    assert [(row[0], row[1]) for row in examples.rows] == [
        ("right before, wrong now", "e"),
        ("right before, wrong now", "a"),
        ("wrong before, right now", "c"),  # d got better and is not right
    ]
    assert examples.rows[0][-1] == "prompt: text of e"


def test_a_lower_loss_is_better():
    rows = [{"example_id": i, "loss": loss} for i, loss in enumerate((1.0, 2.0, 3.0))]
    other = [{"example_id": i, "loss": loss} for i, loss in enumerate((0.5, 2.5, None))]
    before, after = scored("old", rows), scored("new", other)
    (found,) = compare(before, after)
    assert found.rows.tolist() == [0, 1]  # an example without a score is left out
    assert found.gain.tolist() == [0.5, -0.5]
    picture, _ = comparison_blocks([before, after])
    assert "1 examples have no score by both and are left out." in picture.text
    assert "difference +0 [" in picture.text[0]


def test_the_sign_test_is_the_binomial_one():
    for a, b in ((0, 0), (1, 9), (12, 12), (3, 40)):
        expected = binomtest(a, a + b).pvalue if a + b else 1.0
        assert sign_test(a, b) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ([{"example_id": "z", "token_accuracy": 1.0}], "are not of the same examples: 5 of the first are not in the"),
        (accuracies(1, "abcd"), "1 of the first are not in the second, such as 'e'"),
        ([{"example_id": key, "loss": 1.0} for key in "abcde"], "have no score in common to compare"),
        ([{"example_id": key, "token_accuracy": None} for key in "abcde"], "No example has a score in both"),
    ],
)
def test_what_cannot_be_compared(other, message):
    before = scored("old", accuracies(0, "abcde"))
    with pytest.raises(ValueError, match=message):
        compare(before, Scored("new", "new@1", Dataset.from_list(other).cast_column(list(other[0])[-1], _float())))
    with pytest.raises(ValueError, match="holds the scores of one model, old@1"):
        comparison_blocks([before])


def _float():
    from datasets import Value

    return Value("float64")


@pytest.fixture
def two_models(tokenizer, tmp_path, monkeypatch):
    """A folder with the scores of two models on the same data."""
    monkeypatch.chdir(tmp_path)
    sft_data("prompt-completion", 14).to_json("data.jsonl")
    for seed in (0, 1):
        save(tiny_llama(tokenizer, hidden_size=32, seed=seed), tokenizer, tmp_path / f"model-{seed}")
        options = {"model_name_or_path": f"model-{seed}", "dataset_name": "data.jsonl", "output_dir": f"scores-{seed}"}
        options |= {"by": "loss,token_accuracy", "use_cpu": "true"}
        assert score.main([part for name, value in options.items() for part in (f"--{name}", value)]) == 0
    return tmp_path


def test_two_scorings_from_the_command_line(two_models, capsys):
    assert report.main(["scores-0", "scores-1"]) == 0
    assert "Report: scores-0/comparison.html, and as Markdown comparison.md beside it" in capsys.readouterr().out
    page, text = Path("scores-0/comparison.html").read_text(), Path("scores-0/comparison.md").read_text()
    before, after = (Dataset.from_parquet(f"scores-{seed}/scored.parquet") for seed in (0, 1))
    difference = np.mean(after["loss"]) - np.mean(before["loss"])
    for content in (page, text):
        assert "What got better, what got worse: loss, scores-0 to scores-1" in content
        assert f"difference {difference:+.4g} [" in content
    links = re.findall(r"\]\(([^)]+\.png)\)", text)
    assert len(links) == 2
    assert all((Path("scores-0") / link).read_bytes().startswith(b"\x89PNG") for link in links)
    assert report.main(["scores-0"]) == 2
    assert "Give the scores of a second one on the same data" in capsys.readouterr().err


def test_a_selection_and_an_audited_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pairs(24).to_json("pairs.jsonl")
    options = ["--by", "random", "--fraction", "0.25", "--dataset_name", "pairs.jsonl", "--output_dir", "s"]
    assert select.main(options) == 0
    audited = tmp_path / "model" / "_audit"
    audited.mkdir(parents=True)
    own_page = Path("s/report.html").read_bytes()
    write_report(["s", "model"])
    assert Path("s/report.html").read_bytes() == own_page  # of `gradkit select`
    titles = re.findall("<h2>([^<]+)</h2>", Path("s/comparison.html").read_text())
    assert titles == ["Selection s: 6 of 24 rows by random"]
    assert write_report(["s"], "out.md").read_text().startswith("# hf_gradkit report: s\n\n## Selection s: 6 of 24")
    with pytest.raises(ValueError, match=r"`output` is 'out\.pdf'\. Its ending says what is written"):
        write_report(["s"], "out.pdf")


def test_a_page_that_cannot_be_finished_replaces_nothing(two_models, monkeypatch):
    write_report(["scores-0", "scores-1"])
    kept = {path: path.read_bytes() for path in Path("scores-0/comparison_figures").iterdir()}
    text = Path("scores-0/comparison.md").read_text()
    Path("scores-1/scores.json").write_text(json.dumps({"model": "another"}))  # the text would differ

    def fails(*arguments, **options):
        raise OSError("No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fails)
    for name in ("comparison.html", "comparison.md"):
        with pytest.raises(OSError, match="No space left"):
            write_report(["scores-0", "scores-1"], f"scores-0/{name}")
    assert {path: path.read_bytes() for path in Path("scores-0/comparison_figures").iterdir()} == kept
    assert Path("scores-0/comparison.md").read_text() == text
