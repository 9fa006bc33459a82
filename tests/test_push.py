"""`gradkit push`, against a real server: what is pushed comes back as it was, and what fails loses nothing."""

import json
import re
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from run_folders import run_info, snapshot, write_run

from hf_gradkit.cli.main import main
from hf_gradkit.data.tiny import tiny_llama
from hub_uploads import Fault, client_of, environment, hub_that_takes
from launch import run

PRIVATE = {
    "_hold_out/rows.parquet": b"who was held out",
    "_audit/membership_examples.parquet": b"texts",
    ".git/config": b"",
    "checkpoint-2/model.safetensors": b"another model",
    "example_log/part-0-rank-0.parquet": b"rows",
    "_data_filter/report.html": b"rows",
    "gradient_statistics.jsonl": b"\n",
    "training_args.bin": b"a token may be in it",
    "optimizer.pt": b"",
    "report.html": b"rows",
    "scoring/part.parquet": b"",
}


@pytest.fixture
def folder(tokenizer, tmp_path):
    folder = write_run(tmp_path / "run", tokenizer)
    for name, content in PRIVATE.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A server, and huggingface_hub's own client in this process set to it."""
    with hub_that_takes(tmp_path / "hub") as server, client_of(server, monkeypatch):
        yield server


PUBLIC = ["chat_template.jinja", "config.json", "generation_config.json", "gradkit_run.json", "model.safetensors"]
PUBLIC += ["tokenizer.json", "tokenizer_config.json", "trainer_state.json"]


def test_what_is_pushed_and_what_stays(folder, hub, capsys):
    before = snapshot(folder)
    assert main(["push", str(folder), "someone/tiny", "--license", "mit", "--language", "en", "de"]) == 0
    there = hub.files("someone/tiny")
    pictures = [name for name in there if name.startswith("images/")]
    assert sorted(there) == sorted([*PUBLIC, "README.md", *pictures])
    assert len(pictures) >= 2
    assert all(there[name][:4] == b"\x89PNG" for name in pictures)
    for name in PUBLIC:
        assert there[name] == before[name]
    assert snapshot(folder) == before
    page = there["README.md"].decode()
    assert set(re.findall(r"\]\((images/\w+\.png)\)", page)) == set(pictures)
    card = ModelCard(page)
    assert (card.data.license, card.data.language) == ("mit", ["en", "de"])
    said = capsys.readouterr().out
    assert f"Pushed to {hub.endpoint}/someone/tiny" in said
    assert "visibility" not in hub.created["someone/tiny"]


def test_options_reach_the_hub(folder, hub):
    flags = ["--private", "--commit-message", "The second run", "--tags", "gsm8k"]
    assert main(["push", str(folder), "someone/tiny", *flags]) == 0
    assert hub.created["someone/tiny"]["visibility"] == "private"
    assert hub.messages == ["The second run"]
    assert "gsm8k" in ModelCard(hub.files("someone/tiny")["README.md"].decode()).data.tags


def test_a_branch_is_made_and_the_main_one_stays(folder, hub, capsys):
    assert main(["push", str(folder), "someone/tiny"]) == 0
    main_one = hub.files("someone/tiny")
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": [], "global_step": 1, "max_steps": 5}))
    assert main(["push", str(folder), "someone/tiny", "--revision", "early"]) == 0
    assert hub.files("someone/tiny") == main_one
    page = hub.files("someone/tiny@early")["README.md"].decode()
    assert 'from_pretrained("someone/tiny", revision="early")' in page
    assert "this is step 1 of 5" in page
    assert "(branch early)" in capsys.readouterr().out


def test_a_second_push_sends_only_what_changed(folder, hub):
    assert main(["push", str(folder), "someone/tiny"]) == 0
    hub.requests.clear()
    assert main(["push", str(folder), "someone/tiny"]) == 0
    assert not [request for request in hub.requests if request.startswith("PUT")]


@pytest.mark.parametrize(
    ("request_part", "answer", "message"),
    [
        ("POST api/models/someone/tiny/commit", 500, "the Hub answered 500"),
        ("POST api/models/someone/tiny/commit", 429, "too many requests"),
        ("POST api/models/someone/tiny/commit", "drop", "the connection to the Hub broke"),
        ("POST api/repos/create", 503, "the Hub answered 503"),
        ("PUT lfs/", 413, "the Hub answered 413"),
        ("POST api/models/someone/tiny/preupload", 403, "the token may not write there"),
    ],
)
def test_what_fails_is_said_and_loses_nothing(request_part, answer, message, folder, hub, capsys, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits between its own attempts
    before = snapshot(folder)
    hub.faults.append(Fault(request_part, answer))
    command = ["push", str(folder), "someone/tiny"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert message in said
    assert f"Nothing on this machine was changed or lost: run it again: gradkit push {folder} someone/tiny" in said
    assert "Traceback" not in said
    assert snapshot(folder) == before
    assert "README.md" not in hub.files("someone/tiny")
    hub.faults.clear()
    assert main(command) == 0
    assert hub.files("someone/tiny")["model.safetensors"] == before["model.safetensors"]


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, "the Hub answered 401"),
        ("unknown", "the Hub answered 401"),
        ("reads", "the token may not write there. Make one with the right to write to 'someone/tiny'"),
    ],
)
def test_a_token_that_may_not_write(token, message, folder, hub, capsys, monkeypatch):
    before = snapshot(folder)
    with client_of(hub, monkeypatch, token):
        assert main(["push", str(folder), "someone/tiny"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "hf auth login" in said
    assert snapshot(folder) == before


def test_offline_is_said(folder, capsys):
    assert main(["push", str(folder), "someone/tiny"]) == 2  # HF_HUB_OFFLINE is set for all tests
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err


def test_a_dry_run_writes_what_a_push_sends(folder, hub, tmp_path, capsys):
    assert main(["push", str(folder), "someone/tiny", "--dry_run", str(tmp_path / "page")]) == 0
    assert not [request for request in hub.requests if not request.startswith(("GET", "HEAD"))]
    written = snapshot(tmp_path / "page")
    assert not any(path.is_symlink() for path in (tmp_path / "page").rglob("*"))
    assert main(["push", str(folder), "someone/tiny"]) == 0
    assert written == hub.files("someone/tiny")
    capsys.readouterr()
    assert main(["push", str(folder), "someone/tiny", "--dry_run", str(tmp_path / "page")]) == 2
    assert "which is not empty" in capsys.readouterr().err
    assert snapshot(tmp_path / "page") == written


def test_the_license_of_the_base_is_asked_for(folder, hub, monkeypatch):
    base = hub.root / "models" / "Qwen" / "Qwen3-0.6B"
    base.mkdir(parents=True)
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Qwen\n")
    assert main(["push", str(folder), "someone/tiny"]) == 0
    assert ModelCard(hub.files("someone/tiny")["README.md"].decode()).data.license == "apache-2.0"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone", "someone/tiny"], "There is no folder 'gone'"),
        (["{empty}", "someone/tiny"], "holds nothing to push"),
        (["{run}", "someone/tiny", "--repo_type", "dataset"], "holds a model. Leave it out."),
        (["{run}", "some one/tiny"], "cannot be the name of a repository"),
        (["{run}", "someone/tiny", "--max_tpr_at_1_fpr", "5"], "it is a share"),
    ],
)
def test_a_mistake_is_one_message(arguments, message, folder, hub, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    places = {"empty": tmp_path / "empty", "run": folder}
    assert main(["push", *(argument.format(**places) for argument in arguments)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not hub.created


def test_a_folder_of_checkpoints_names_the_newest(tokenizer, hub, tmp_path, capsys):
    write_run(tmp_path / "run" / "checkpoint-2", tokenizer, {})
    assert main(["push", str(tmp_path / "run"), "someone/tiny"]) == 2
    assert f"such as '{tmp_path / 'run' / 'checkpoint-2'}'" in capsys.readouterr().err
    (tmp_path / "run" / "gradkit_run.json").write_text(json.dumps(run_info()))
    assert main(["push", str(tmp_path / "run" / "checkpoint-2"), "someone/tiny"]) == 0
    card = ModelCard(hub.files("someone/tiny")["README.md"].decode())
    assert card.data.base_model == "Qwen/Qwen3-0.6B"


LOADS = """
import re, sys
from pathlib import Path
from huggingface_hub import hf_hub_download, snapshot_download

for kind, repo in (argument.split(":") for argument in sys.argv[1:]):
    folder = snapshot_download(repo, repo_type=kind)
    page = Path(hf_hub_download(repo, "README.md", repo_type=kind)).read_text()
    (code,) = re.findall(r"```python\\n(.*?)```", page, re.S)
    names = {}
    exec(code, names)
    if kind == "dataset":
        print(repo, names["dataset"].num_rows, names["scores"].num_rows if "scores" in names else "")
    else:
        print(repo, type(names["model"]).__name__)
"""


def test_what_was_pushed_is_loaded_by_the_code_of_its_page(tokenizer, hub, tmp_path):
    """Another process, which knows the server alone, runs what the pages say: full models, adapters, data."""
    from peft import LoraConfig, get_peft_model

    write_run(tmp_path / "full", tokenizer)
    base = tiny_llama(tokenizer, hidden_size=32)
    base.save_pretrained(hub.root / "models" / "someone" / "base")
    adapter = get_peft_model(base, LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"]))
    adapter.peft_config["default"].base_model_name_or_path = "someone/base"
    adapter.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    (tmp_path / "pairs.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{n}?", "chosen": "a" * n, "rejected": "b"}) + "\n" for n in range(1, 21))
    )
    select = ["--dataset_name", str(tmp_path / "pairs.jsonl"), "--by", "length", "--fraction", "0.3"]
    assert main(["select", *select, "--output_dir", str(tmp_path / "selected")]) == 0
    for name in ("full", "adapter", "selected"):
        assert main(["push", str(tmp_path / name), f"someone/{name}"]) == 0
    (tmp_path / "loads.py").write_text(LOADS)
    repos = ["model:someone/full", "model:someone/adapter", "dataset:someone/selected"]
    ended = run(
        [sys.executable, str(tmp_path / "loads.py"), *repos], env=environment(hub, tmp_path / "home"), cwd=tmp_path
    )
    assert ended.returncode == 0, ended.output[-4000:]
    assert "someone/full LlamaForCausalLM" in ended.output
    assert "someone/adapter PeftModelForCausalLM" in ended.output
    assert "someone/selected 6 20" in ended.output
    card = ModelCard(hub.files("someone/adapter")["README.md"].decode())
    assert card.data.library_name == "peft"
    assert card.data.base_model == "someone/base"
    assert card.data.to_dict()["base_model_relation"] == "adapter"
    assert "More Information Needed" not in card.text


def test_scores_are_a_data_set(hub, tmp_path):
    from datasets import Dataset, load_dataset

    Dataset.from_dict({"prompt": ["a", "b"], "reward_margin": [1.0, -1.0]}).to_parquet(tmp_path / "scored.parquet")
    figures = {"format": 1, "by": "reward", "model": "runs/reward", "key": "k", "rows": 2, "agreement": 0.5}
    figures |= {"mean_margin": 0.0, "std_margin": 1.0, "temperature": None}
    figures |= {"source": "trl-lib/pairs", "split": "train", "command": "gradkit score --by reward"}
    (tmp_path / "scores.json").write_text(json.dumps(figures))
    assert main(["push", str(tmp_path), "someone/scores", "--license", "mit"]) == 0
    there = hub.files("someone/scores", "datasets")
    metadata = ModelCard(there["README.md"].decode()).data.to_dict()
    assert metadata["source_datasets"] == ["trl-lib/pairs"]
    assert metadata["license"] == "mit"
    assert metadata["configs"][0]["data_files"] == [{"split": "train", "path": "scored.parquet"}]
    loaded = load_dataset(str(hub.root / "datasets" / "someone" / "scores"), split="train")
    assert loaded["reward_margin"] == [1.0, -1.0]
    assert Path(tmp_path / "README.md").exists() is False
