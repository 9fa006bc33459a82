"""`gradkit report`: one page from saved logs alone."""

import base64
import re

import pytest
import trl

import hf_gradkit
from helpers import text_dataset, train
from hf_gradkit.cli import report
from hf_gradkit.reporting.page import write_report
from hf_gradkit.reporting.runs import read_run


@pytest.fixture(scope="module")
def runs(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    options = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2}
    keywords = {"eval_dataset": text_dataset(8, seed=1)}
    train(
        hf_gradkit.SFTTrainer,
        hf_gradkit.SFTConfig,
        tokenizer,
        folder / "weighted",
        text_dataset(24, "source"),
        trainer_kwargs=keywords,
        weighting="linupper",
        weighting_kwargs={"warmup_ratio": 0.0},
        group_column="source",
        **options,
    )
    # A run of TRL's own: its state is in the newest checkpoint only.
    train(
        trl.SFTTrainer,
        trl.SFTConfig,
        tokenizer,
        folder / "plain<run>",
        text_dataset(),
        trainer_kwargs={"eval_dataset": text_dataset(8, seed=1)},
        save_strategy="steps",
        save_steps=2,
        **options,
    )
    return folder


def test_a_run_is_read_back(runs):
    run = read_run(runs / "weighted")
    assert run.series("loss")[0] == [1, 2, 3, 4]
    assert run.series("eval_loss")[0] == [2, 4]
    assert run.groups() == ["books", "code", "web"]
    assert run.info["weighting"] == "linupper"
    assert run.info["settings"]["weighting_kwargs"] == {"warmup_ratio": 0.0}
    assert run.steps_to("eval_loss", run.last("eval_loss")) == 4
    assert run.steps_to("eval_loss", 0.0) is None
    assert read_run(runs / "plain<run>").series("loss")[0] == [1, 2, 3, 4]


def test_the_page_holds_its_figures_and_loads_nothing(runs, capsys):
    assert report.main([str(runs / "weighted"), str(runs / "plain<run>")]) == 0
    path = runs / "weighted" / "report.html"
    assert str(path) in capsys.readouterr().out
    page = path.read_text()
    images = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(images) == 3  # losses, weights, groups
    assert all(base64.b64decode(image).startswith(b"\x89PNG") for image in images)
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "plain&lt;run&gt;" in page
    assert "<run>" not in page
    assert "weighting_kwargs" in page  # what differs in the settings


def test_a_section_without_figures_says_so(runs):
    page = write_report([runs / "plain<run>"], runs / "page.html").read_text()
    assert page.count("These runs logged nothing for this section") == 2


def test_a_folder_without_a_run(tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 2
    assert "holds no run: there is neither trainer_state.json nor checkpoint-*" in capsys.readouterr().err
    (tmp_path / "trainer_state.json").write_text("{")
    assert report.main([str(tmp_path)]) == 2
    assert "is not readable" in capsys.readouterr().err
