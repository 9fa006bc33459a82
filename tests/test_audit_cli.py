"""`gradkit audit`, from the data to the report: hold out, train, audit; and what the files are and are not."""

import json
import shutil
import stat
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from audit_helpers import LENGTH, record_tokenizer, records, save_base
from hf_gradkit.cli import main
from hf_gradkit.reporting.audit_files import card_section, write_audit
from hf_gradkit.reporting.blocks import markdown

TRAIN = f"""
    --max_length {LENGTH} --num_train_epochs 12 --per_device_train_batch_size 8 --learning_rate 3e-3 --bf16 false
    --activation_checkpointing false --logging_steps 25 --report_to none --disable_tqdm true --save_strategy epoch
""".split()
FEW = ["--bootstrap_rounds", "50", "--per_device_eval_batch_size", "16"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which a model was trained on what `gradkit audit hold_out` left, and is audited."""
    folder = tmp_path_factory.mktemp("cli")
    base = save_base(folder, record_tokenizer(), steps=100)
    records(160).to_json(folder / "data.jsonl")
    assert AutoTokenizer.from_pretrained(base).eos_token == "<|end|>"
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    held = ["audit", "hold_out", "--dataset_name", str(folder / "data.jsonl"), "--fraction", "0.25"]
    run = str(folder / "run")
    assert main.main([*held, "--output_dir", run, "--id_column", "uid"]) == 0
    data = ["--dataset_name", f"{run}/_hold_out/train.parquet", "--output_dir", run]
    options = [*TRAIN, "--save_total_limit", "2", "--save_only_model", "true", "--example_log", "true"]
    assert main.main(["sft", "--model_name_or_path", str(folder / "base"), *data, *options]) == 0
    return run


@pytest.fixture(scope="module")
def audited(trained, folder):
    common = ["--model_name_or_path", trained, "--reference_model_name_or_path", str(folder / "base")]
    assert main.main(["audit", "membership", *common, *FEW, "--checkpoints", "true"]) == 0
    short = ["--prefix_tokens", "20", "--suffix_tokens", "20", "--generations", "1"]
    assert main.main(["audit", "extraction", *common, *short]) == 0
    return Path(trained) / "_audit"


def test_the_audit_finds_what_leaks(audited, capsys):
    figures = json.loads((audited / "membership.json").read_text())
    assert (figures["members"], figures["non_members"]) == (120, 40)
    assert figures["unsound"] is None
    assert figures["attacks"]["flora"]["auc"] > 0.95
    curve = figures["epochs"]
    assert [point["epoch"] for point in curve] == [11.0, 12.0]
    assert curve[-1]["attacks"]["flora"]["auc"] == pytest.approx(figures["attacks"]["flora"]["auc"])
    assert "roc" not in curve[0]["attacks"]["loss"]
    # `max_length` is that of the training, though the audit was not told.
    lengths = pq.read_table(audited / "membership_examples.parquet").column("tokens").to_pylist()
    assert max(lengths) <= LENGTH
    extraction = json.loads((audited / "extraction.json").read_text())
    assert extraction["members"]["prompts"] == 120
    assert extraction["generations"] == 1


def test_files_are_their_owners_and_hold_no_text(audited):
    names = {path.name for path in audited.iterdir() if path.is_file()}
    kinds = ("membership", "extraction")
    assert names == {f"{kind}{end}" for kind in kinds for end in (".html", ".md", ".json", "_examples.parquet")}
    words = set(" ".join(records(160)["text"]).split())
    secrets = {word.strip(".") for word in words if word.strip(".").isdigit() and len(word) > 7}
    assert len(secrets) == 160
    for path in audited.iterdir():
        if path.is_dir():
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 or path.name == "work"
            continue
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        content = path.read_bytes().decode(errors="ignore")
        assert not any(secret in content for secret in secrets), path
    assert stat.S_IMODE(audited.stat().st_mode) == 0o700
    assert "text" not in pq.read_table(audited / "membership_examples.parquet").column_names


def test_the_report_says_what_a_person_needs(audited):
    text = (audited / "membership.md").read_text()
    for part in (
        "## What leaks",
        "| flora |",
        "TPR at 1.0% FPR",
        "## The gate",
        "## What to change",
        "## Over training",
    ):
        assert part in text, part
    assert "The strongest attack is" in text
    assert "Before publishing: train for fewer epochs" in text
    assert "(" in text.split("TPR at 0.1% FPR")[1]  # 40 non-members cannot support it: greyed out
    page = (audited / "membership.html").read_text()
    assert page.count("data:image/png;base64") == 2
    assert 'class="n none"' in page
    assert "http" not in page.replace("http-equiv", "")
    extraction = (audited / "extraction.md").read_text()
    assert "(n, p)-discoverable" in extraction
    assert "verbatim, top-ranked guess" in extraction


def test_gradkit_report_has_a_section(audited, trained, tmp_path):
    assert main.main(["report", trained, "--output", str(tmp_path / "report.html")]) == 0
    assert "<h2>Privacy audit</h2>" in (tmp_path / "report.html").read_text()


def test_text_only_on_request(trained, folder, tmp_path, capsys):
    options = ["--model_name_or_path", trained, "--output_dir", str(tmp_path / "with"), "--show_text", "true", *FEW]
    assert (
        main.main(
            ["audit", "membership", *options, "--attacks", "loss", "min_k", "--attack_kwargs", '{"min_k": {"k": 10}}']
        )
        == 0
    )
    said = capsys.readouterr().out
    assert "with their texts" in said
    assert "Next: gradkit audit extraction --model_name_or_path" in said
    table = pq.read_table(tmp_path / "with" / "membership_examples.parquet")
    assert table.column_names == ["hash", "member", "tokens", "loss", "min_k", "text"]
    assert set(table.column("text").to_pylist()) == set(records(160)["text"])
    assert "epochs" not in json.loads((tmp_path / "with" / "membership.json").read_text())


def test_a_config_and_data_without_a_record(trained, folder, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy, ignore=shutil.ignore_patterns("_*", "checkpoint-*"))
    records(40, seed=3).to_json(tmp_path / "others.jsonl")
    config = tmp_path / "audit.yaml"
    config.write_text(
        f"model_name_or_path: {copy}\ndataset_name: {folder / 'data.jsonl'}\nnon_members_name: "
        f"{tmp_path / 'others.jsonl'}\nbootstrap_rounds: 50\nmax_examples: 30\nfalse_positive_rates: [0.1]\n"
    )
    assert main.main(["audit", "membership", "--config", str(config)]) == 0
    assert "UNSOUND: see the head of the report." in capsys.readouterr().out
    figures = json.loads((copy / "_audit" / "membership.json").read_text())
    assert list(figures["attacks"]["loss"]["tpr"]) == ["0.1"]
    assert "## Read this first\n\nUNSOUND." in (copy / "_audit" / "membership.md").read_text()
    section = card_section([figures])
    assert "the audit is unsound, so it says nothing" in section
    assert main.main(["audit", "--config", str(config), "membership", "--dry_run"]) == 0


def test_the_card_has_figures_alone(audited):
    figures = [json.loads((audited / f"{kind}.json").read_text()) for kind in ("membership", "extraction")]
    section = card_section(figures)
    assert "The strongest attack is" in section
    assert "greedy decoding writes the next 20" in section
    assert figures[0]["model"] not in section


def test_a_report_replaces_an_older_one_whole(audited, tmp_path):
    figures = json.loads((audited / "membership.json").read_text())
    for _ in range(2):
        paths = write_audit(figures, {"hash": ["a"]}, tmp_path / "again")
    assert len(list((tmp_path / "again").iterdir())) == 4
    assert paths["text"].read_text().startswith("# Privacy audit, membership: ")
    assert markdown("t", []) == "# t\n"


def test_holding_out_again(trained, folder, capsys):
    held = [
        "audit",
        "hold_out",
        "--dataset_name",
        str(folder / "data.jsonl"),
        "--output_dir",
        trained,
        "--id_column",
        "uid",
    ]
    assert main.main([*held, "--fraction", "0.25"]) == 0  # the same one
    assert main.main([*held, "--fraction", "0.5"]) == 2
    assert "has the record of another hold-out" in capsys.readouterr().err
    assert len(pq.read_table(Path(trained) / "_hold_out" / "held_out.parquet")) == 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "needs the kind of audit first, and got nothing"),
        (["membershp"], "got 'membershp'. Did you mean 'membership'?"),
        (["membership"], "`model_name_or_path` is not set"),
        (
            ["membership", "--model_name_or_path", "owner/name"],
            "`output_dir` is not set, and 'owner/na",
        ),
        (["membership", "--model_name_or_path", "BASE"], "No data is named, and none was written by"),
        (
            ["membership", "--atacks", "loss"],
            "--atacks is not an option of gradkit audit",
        ),
        (
            ["extraction", "--model_name_or_path", "BASE", "--dataset_name", "DATA", "--top_k", "-1"],
            "`top_k` must be at",
        ),
        (["membership", "--model_name_or_path", "BASE", "--dataset_name", "DATA"], "There is no record of a hold-out"),
        (["membership", "--model_name_or_path", "RUN", "--attacks", "floral"], "Did you mean 'flora'?"),
        (["membership", "--model_name_or_path", "RUN", "--attacks", "flora"], "and there is no reference"),
        (
            ["membership", "--model_name_or_path", "BASE", "--hold_out", "RUN", "--checkpoints", "true"],
            "holds no checkpo",
        ),
        (["hold_out", "--dataset_name", "DATA"], "`output_dir` is not set. Name the folder of the model"),
        (["hold_out", "--output_dir", "new"], "No data is named"),
    ],
)
def test_mistakes(arguments, message, trained, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    base = tmp_path / "base"
    shutil.copytree(folder / "base", base)
    places = {"BASE": str(base), "DATA": str(folder / "data.jsonl"), "RUN": trained}
    assert main.main(["audit", *(places.get(argument, argument) for argument in arguments)]) == 2
    assert message in capsys.readouterr().err


def test_records_to_try_it_on(tmp_path, capsys):
    assert main.main(["audit", "secrets", "--output_dir", str(tmp_path), "--rows", "9", "--canaries", "2"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert len(lines) == 9
    assert lines[0]["text"].endswith(f"{lines[0]['secret']}.")
    canaries = [json.loads(line) for line in (tmp_path / "canaries.jsonl").read_text().splitlines()]
    assert [len(row["alternatives"]) for row in canaries] == [255, 255]
    assert "Next: gradkit audit hold_out --dataset_name" in capsys.readouterr().out


def test_help(capsys):
    assert main.main(["audit", "--help"]) == 0
    said = capsys.readouterr().out
    assert "usage: gradkit audit secrets|hold_out|membership|extraction" in said
    assert "--attacks" not in said
    with pytest.raises(SystemExit):
        main.main(["audit", "membership", "--help"])
    assert "--attacks" in capsys.readouterr().out
