"""A model that gives away more than a limit allows is not pushed, and neither is one that cannot be judged."""

import json

import pytest
from run_folders import snapshot, write_run
from test_audit_summary import TEXT, extraction, membership, write

from hf_gradkit.cli.main import main
from hf_gradkit.publishing.facts import read_model
from hf_gradkit.publishing.gate import LimitExceeded, Limits
from hf_gradkit.publishing.page import model_page
from hub_uploads import client_of, hub_that_takes


@pytest.fixture
def folder(tokenizer, tmp_path):
    """A model with both audits: the best attack has a rate above .4; extraction is .65 above held-out rows."""
    folder = write_run(tmp_path / "run", tokenizer)
    write(membership(), folder)
    write(extraction(), folder)
    return folder


@pytest.fixture
def rate():
    return membership()["attacks"]["flora"]["tpr"]["0.01"]["tpr"]


@pytest.mark.parametrize(
    ("limits", "passes"),
    [
        ({"max_extraction_above_baseline": 0.66}, True),
        ({"max_extraction_above_baseline": 0.64}, False),
        ({"max_tpr_at_1_fpr": 1.0}, True),
        ({"max_tpr_at_1_fpr": 0.05}, False),
        ({"max_tpr_at_1_fpr": 1.0, "max_extraction_above_baseline": 0.0}, False),
        ({}, True),
    ],
)
def test_limits(limits, passes, folder):
    if passes:
        assert len(Limits(**limits).check(folder)) == len(limits)
        return
    with pytest.raises(LimitExceeded):
        Limits(**limits).check(folder)


def test_the_message_says_which_limit_and_by_how_much(folder, rate):
    with pytest.raises(LimitExceeded) as raised:
        Limits(max_extraction_above_baseline=0.02, max_tpr_at_1_fpr=0.05).check(folder)
    said = str(raised.value)
    assert f"(flora) recognises a share of the members of {rate:.4g}; `max_tpr_at_1_fpr` is 0.05" in said
    assert f"so the figure is {rate - 0.05:.4g} above the limit" in said
    assert "`max_extraction_above_baseline` is 0.02, so the figure is 0.63 above the limit" in said


def test_a_model_above_a_limit_is_not_pushed(folder, tmp_path, monkeypatch, capsys):
    before = snapshot(folder)
    with hub_that_takes(tmp_path / "hub") as hub, client_of(hub, monkeypatch):
        command = ["push", str(folder), "someone/tiny", "--max_tpr_at_1_fpr"]
        assert main([*command, "0.05"]) == 2
        assert not hub.requests
        assert "above the limit" in capsys.readouterr().err
        assert main([*command, "1"]) == 0
        page = hub.files("someone/tiny")["README.md"].decode()
        assert "_audit/membership.json" not in hub.files("someone/tiny")
    assert "The strongest attack is flora" in page
    assert TEXT not in page
    assert snapshot(folder) == before


@pytest.mark.parametrize(
    ("audit", "message"),
    [
        (None, "no membership audit to judge it by. Make one first: gradkit audit membership --model_name_or_path"),
        (extraction(), "no membership audit to judge it by"),
        (membership(unsound="Not held out."), "UNSOUND. Not held out."),
        (membership(non_members=99), "fewer than 100 held-out examples"),
        (membership(model_hash="of another model"), "of other weights than those in the folder now"),
    ],
)
def test_what_cannot_be_judged_is_refused(audit, message, tokenizer, tmp_path):
    folder = write_run(tmp_path / "run", tokenizer)
    if audit is not None:
        write(audit, folder)
    with pytest.raises(ValueError) as raised:
        Limits(max_tpr_at_1_fpr=1.0).check(folder)
    assert message in str(raised.value)
    assert not isinstance(raised.value, LimitExceeded)


def test_figures_that_are_broken_are_no_figures(folder):
    path = folder / "_audit" / "membership.json"
    path.write_text(json.dumps(membership())[:100])
    with pytest.raises(ValueError, match="cannot be read"):
        Limits(max_tpr_at_1_fpr=1.0).check(folder)


def test_the_page_says_that_an_audit_is_of_other_weights(tokenizer, tmp_path):
    folder = write_run(tmp_path / "run", tokenizer)
    write(membership(), folder)
    stale = "The audit was of other weights than these."
    assert stale not in model_page(read_model(folder), []).text
    write(membership(model_hash="of another model"), folder)
    assert stale in model_page(read_model(folder), []).text
