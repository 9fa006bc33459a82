"""What a folder's audits say in a few figures: for the model card, and for limits before a push."""

import json

import numpy as np
import pytest
import torch

from hf_gradkit.audit.evaluation import Trial
from hf_gradkit.audit.extraction_figures import suffix_figures
from hf_gradkit.audit.models import AuditedModel
from hf_gradkit.audit.summary import find_audits
from hf_gradkit.data.tiny import tiny_llama
from hf_gradkit.reporting.audit_files import write_audit

TEXT = "the account number is 12345678"


def membership(non_members: int = 200, **others) -> dict:
    """Return the figures of an audit of 300 members: `loss` knows nothing, `flora` much, `min_k` a little."""
    rng = np.random.default_rng(0)
    members = np.arange(300 + non_members) < 300
    noise = rng.normal(size=(3, len(members)))
    scores = {"loss": noise[0], "flora": noise[1] + 3 * members, "min_k": noise[2] + members}
    attacks = Trial(members, np.arange(len(members)), rounds=50).evaluate(scores)
    words = {"auc": 0.5, "auc_interval": (0.4, 0.6), "p": 1.0, "fires": False, "noted": False}
    gate = {"level": 0.99, "stamped_at": 0.001, "noted_at": 0.05, "noted": False, "attacks": {"words": words}}
    figures = {"unsound": None, "confounded": False, "gate": gate, "attacks": attacks, "doubtful": {}, **others}
    utility = {"member_loss": 1.0, "held_out_loss": 2.0}
    settings = {"reference": "base", "documents": 500, "bootstrap_rounds": 50, "seed": 0, "level": 0.95}
    counts = {"members": 300, "non_members": non_members, "utility": utility}
    return {"format": 1, "audit": "membership", "model": TEXT, **counts, **settings, **figures}


def extraction(**others) -> dict:
    """Return the figures of an audit in which 30 of 40 members and 2 of 20 others are written out."""
    members = np.arange(60) < 40
    written = (np.arange(60) < 30) | (np.arange(60) >= 58)
    chances = np.where(written, 1.0, 0.5)[:, None]
    found = {"sampled": chances, "greedy": chances, "log_probs": np.log(chances)}
    sides = {"members": members, "non_members": ~members}
    figures = {name: suffix_figures(found, side, (1,), (0.5,)) for name, side in sides.items()}
    assert figures["members"]["loss"] == pytest.approx(np.log(2) / 4)  # 10 of 40 suffixes have a chance of one half
    settings = {"prefix_tokens": 5, "suffix_tokens": 1, "generations": 0, "sampling": {}, "ranked_by": "loss"}
    facts = {"unsound": None, "too_short": 0, "seed": 0, "reference": None, "canaries": None}
    return {"format": 1, "audit": "extraction", "model": TEXT, **facts, **settings, **figures, **others}


def write(figures: dict, folder) -> None:
    write_audit(figures, {"hash": ["a"], "text": [TEXT]}, folder / "_audit")


def test_figures_of_both_audits(tmp_path):
    assert find_audits(tmp_path) is None
    figures = membership()
    write(figures, tmp_path)
    alone = find_audits(tmp_path)
    assert alone.audits == ("membership",)
    assert alone.extraction_rate is alone.extraction_above_held_out is None
    write(extraction(), tmp_path)
    found = find_audits(tmp_path)
    assert found.audits == ("membership", "extraction")
    assert (found.best_attack, found.stamps) == ("flora", ())
    assert found.tpr_at_1_percent_fpr == figures["attacks"]["flora"]["tpr"]["0.01"]["tpr"] > 0.4
    assert found.auc == figures["attacks"]["flora"]["auc"]
    assert (found.extraction_rate, found.held_out_extraction_rate) == (0.75, 0.1)
    assert found.extraction_above_held_out == pytest.approx(0.65)
    assert found.of_these_weights is None  # these audits do not say of which weights they are


def test_the_section_has_figures_alone(tmp_path):
    write(membership(), tmp_path)
    write(extraction(), tmp_path)
    section = find_audits(tmp_path).section
    assert section.startswith("## Privacy audit\n")
    assert "The strongest attack is flora: AUC" in section
    assert "75.0% of the members" in section
    assert "its loss on held-out examples is 2.000 nats a token" in section  # utility beside leakage
    assert "its loss on held-out suffixes is 0.624 nats a token" in section
    assert section.endswith("on examples that were held out at random before training.\n")
    assert TEXT not in section  # neither a text nor the name of the model's folder


def test_a_rate_that_the_audit_cannot_support_is_none(tmp_path):
    write(membership(non_members=99), tmp_path)
    found = find_audits(tmp_path)
    assert found.tpr_at_1_percent_fpr is found.best_attack is None
    assert found.auc > 0.9


def test_audits_that_must_not_be_believed(tmp_path):
    write(membership(unsound="Not held out."), tmp_path)
    write(extraction(unsound="Not held out."), tmp_path)
    found = find_audits(tmp_path)
    assert found.stamps == ("UNSOUND. Not held out.",)
    assert "unsound, so it says nothing" in found.section
    assert "AUC" not in found.section
    assert "held out at random" not in found.section


@pytest.mark.parametrize("content", ['{"audit": "membership", "mod', "[]", json.dumps({"audit": "extraction"})])
def test_a_broken_file_is_not_an_audit_that_found_nothing(tmp_path, content):
    write(membership(), tmp_path)
    (tmp_path / "_audit" / "membership.json").write_text(content)
    with pytest.raises(ValueError, match=r"membership.json' cannot be read .*Audit the model again"):
        find_audits(tmp_path)


def test_whether_the_audit_is_of_these_weights(tmp_path, tokenizer):
    """An audit knows the files it was made of; a model that was trained on since is another one."""
    model = tiny_llama(tokenizer, hidden_size=32)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    write(membership(model_hash=AuditedModel(str(tmp_path)).saved_hash), tmp_path)
    assert find_audits(tmp_path).of_these_weights is True
    (tmp_path / "README.md").write_text("A page is no part of the model.")
    assert find_audits(tmp_path).of_these_weights is True
    write(extraction(), tmp_path)
    assert find_audits(tmp_path).of_these_weights is None  # one of the two does not say
    with torch.no_grad():
        model.lm_head.weight.add_(1e-3)
    model.save_pretrained(tmp_path)
    write(extraction(model_hash=AuditedModel(str(tmp_path)).saved_hash), tmp_path)
    assert find_audits(tmp_path).of_these_weights is False  # the membership audit is of the model before
    assert AuditedModel(model).saved_hash is None
