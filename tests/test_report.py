"""`gradkit report`: one page from saved logs alone."""

import base64
import re

import pytest
import trl

import hf_gradkit
from helpers import text_dataset, train
from hf_gradkit.cli import report
from hf_gradkit.reporting import figures
from hf_gradkit.reporting.page import write_report
from hf_gradkit.reporting.runs import Run, read_run
from pair_helpers import pairs, save_policy, train_dpo


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


@pytest.fixture(scope="module")
def preference_runs(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("preference")
    policy = save_policy(folder / "policy", tokenizer)
    dataset = pairs(24, "reward_margin")
    arms = {"madpo": {"weighting": "madpo"}, "beta_dpo": {"loss_type": ["beta_dpo"]}, "rpo": {"loss_type": ["rpo"]}}
    for name, options in arms.items():
        trainer = train_dpo(
            hf_gradkit.DPOTrainer,
            hf_gradkit.DPOConfig,
            policy,
            folder / name,
            dataset,
            trainer_kwargs={"eval_dataset": pairs(8, seed=1)},
            eval_strategy="steps",
            eval_steps=2,
            **options,
        )
        trainer.save_state()
    trainer = train_dpo(trl.DPOTrainer, trl.DPOConfig, policy, folder / "trl", pairs(24))
    trainer.save_state()
    args = hf_gradkit.RewardConfig(
        str(folder / "reward"), max_steps=2, logging_steps=1, use_cpu=True, bf16=False, report_to="none",
        save_strategy="no", disable_tqdm=True, activation_checkpointing=False,
    )  # fmt: skip
    trainer = hf_gradkit.RewardTrainer(policy, args=args, train_dataset=pairs(24))
    trainer.train()
    trainer.save_state()
    return folder


def titles(page: str) -> list[str]:
    return re.findall("<h2>([^<]+)</h2>", page)


def cells(page: str) -> list[list[str]]:
    """Return the rows of the summary."""
    table = page[page.index("<table>") : page.index("</table>")]
    return [re.findall("<t[hd][^>]*>([^<]*)</t[hd]>", row) for row in table.split("<tr>")[1:]]


def test_preference_runs_have_sections_of_their_own(preference_runs):
    names = ["madpo", "beta_dpo", "rpo", "trl"]
    page = write_report([preference_runs / name for name in names]).read_text()
    always, last = ["Losses", "Weights", "Groups"], ["Throughput"]
    further = ["Implicit rewards", "Drift of log-probabilities", "Reward margins", "beta-DPO"]
    assert titles(page) == always + further + last
    assert page.count("These runs logged nothing") == 1  # no groups
    heading, *rows = cells(page)
    assert [row[0] for row in rows] == names
    method = [row[heading.index("method")] for row in rows]
    assert method == ["sigmoid, madpo", "beta_dpo", "rpo", ""]
    temperature = read_run(preference_runs / "madpo").last("margins/temperature")
    assert rows[0][heading.index("margin temperature")] == f"{temperature:.4g}"
    assert rows[3][heading.index("margin temperature")] == ""
    assert all(row[heading.index("pairs ordered as labelled")] for row in rows)


def test_a_reward_model_has_a_section(preference_runs):
    page = write_report([preference_runs / "reward"]).read_text()
    assert titles(page)[-2:] == ["Reward model", "Throughput"]
    assert "Implicit rewards" not in page


def test_sections_of_pairs_are_not_shown_for_text(runs):
    page = write_report([runs / "weighted"], runs / "text.html").read_text()
    assert titles(page) == ["Losses", "Weights", "Groups", "Throughput"]
    assert "pairs" not in "".join(cells(page)[0])


@pytest.mark.parametrize(
    ("names", "unit"),
    [
        (["text"], "nats per token"),
        (["pairs"], "loss per pair"),
        (["rewards"], "nats per pair"),
        (["text", "pairs"], "loss"),
    ],
)
def test_the_loss_has_the_unit_of_what_was_trained_on(names, unit):
    keys = {"text": {}, "pairs": {"rewards/margins": 0.1}, "rewards": {"accuracy": 0.5, "margin": 0.1}}
    runs = [Run(name, None, [{"step": 1, "loss": 0.7, "eval_loss": 0.7, **keys[name]}], {}) for name in names]
    assert [run.kind for run in runs] == names
    assert {axis.get_ylabel() for axis in figures.loss_figure(runs).axes} == {unit}


def test_the_training_loss_of_pairs_is_named_for_what_it_is():
    entry = {"step": 1, "loss": 0.9, "loss/unweighted": 0.6, "rewards/margins": 0.1}
    ours = Run("ours", None, [entry], {})
    plain = Run("plain", None, [{key: entry[key] for key in ("step", "loss", "rewards/margins")}], {})
    (axis,) = figures.loss_figure([ours]).axes
    assert axis.get_title() == "training: DPO loss, unweighted"
    assert list(axis.lines[0].get_ydata()) == [0.6]
    (axis,) = figures.loss_figure([ours, plain]).axes
    assert axis.get_title() == "training loss, unweighted"


def test_figures_of_pairs_show_what_was_logged(preference_runs):
    runs = [read_run(preference_runs / name) for name in ("madpo", "beta_dpo", "rpo", "trl")]
    madpo, beta_dpo, _, _ = runs
    left, right = figures.implicit_reward_figure(runs).axes
    assert list(left.lines[0].get_ydata()) == madpo.series("rewards/chosen")[1]
    assert list(left.lines[1].get_ydata()) == madpo.series("rewards/rejected")[1]
    assert list(right.lines[1].get_ydata()) == madpo.series("eval_rewards/accuracies")[1]
    left, right = figures.drift_figure(runs).axes
    assert len(right.lines) == 4
    assert len(left.lines) == 1 + 2 * 3  # TRL logs no drift
    assert list(left.lines[1].get_ydata()) == madpo.series("logps/chosen_drift")[1]
    left, right = figures.margin_figure(runs).axes
    assert list(left.lines[0].get_ydata()) == madpo.series("margins/mean")[1]
    assert list(right.lines[0].get_ydata()) == madpo.series("margins/agreement")[1]
    left, right = figures.beta_figure(runs).axes
    assert list(left.lines[0].get_ydata()) == beta_dpo.series("beta_dpo/beta")[1]
    assert list(right.lines[0].get_ydata()) == beta_dpo.series("beta_dpo/gap_mean")[1]
    assert "75% of the pairs kept" in left.get_legend().get_texts()[0].get_text()  # int(0.8 * 4) of 4
    assert figures.beta_figure(runs).axes[0].lines[0].get_color() == figures.COLOURS[1]  # its own in every figure
    assert figures.beta_figure(runs[:1]) is figures.margin_figure(runs[1:]) is None
