"""`gradkit score` on SFT data: from a file to a file with scores, on one process or two, killed or not."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import transformers
import yaml
from datasets import Dataset
from peft import LoraConfig, get_peft_model

from difficulty_helpers import plain_scores, sft_data
from hf_gradkit.cli import score, select, sft
from hf_gradkit.data.loading import load_split
from hf_gradkit.data.tiny import tiny_llama
from hf_gradkit.scoring import SFTFormat, add_difficulty, tokenize_sft
from hf_gradkit.scoring.work import read_stream
from launch import launch
from results import Results

ALL = ["el2n", "grand", "loss", "perplexity", "token_accuracy"]
WORKER = Path(__file__).parent / "workers" / "difficulty_cases.py"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, tokenizer):
    """A folder with two checkpoints, an adapter, and SFT data whose columns need a mapping."""
    folder = tmp_path_factory.mktemp("difficulty")
    for seed in (0, 1):
        tiny_llama(tokenizer, hidden_size=32, seed=seed).save_pretrained(folder / f"seed-{seed}")
        tokenizer.save_pretrained(folder / f"seed-{seed}")
    based = transformers.AutoModelForCausalLM.from_pretrained(folder / "seed-0")
    adapter = LoraConfig(target_modules="all-linear", r=2, init_lora_weights=False)
    get_peft_model(based, adapter).save_pretrained(folder / "adapter")
    for name, kind in (("data", "prompt-completion"), ("chat", "chat"), ("text", "text")):
        data = sft_data(kind, 14)
        if name == "data":
            data = data.rename_columns({"prompt": "question", "completion": "answer"})
        data.to_json(folder / f"{name}.jsonl")
    return folder


@pytest.fixture
def scoring(workplace, monkeypatch):
    """Write a YAML with these changes to a working one, and return its arguments."""
    monkeypatch.chdir(workplace)

    def write(**changes):
        values = {"by": ALL, "model_name_or_path": "seed-0", "dataset_name": "data.jsonl", "output_dir": "out"}
        values |= {"column_mapping": {"question": "prompt", "answer": "completion"}, "example_id_column": "uid"}
        values |= {"per_device_eval_batch_size": 3, **changes}
        Path("job.yaml").write_text(yaml.safe_dump({k: v for k, v in values.items() if v != "left out"}))
        return ["--config", "job.yaml"]

    return write


def expected(workplace, model="seed-0", by=ALL, **options):
    """Return the scores of the library's function, which has its own oracle."""
    data = Dataset.from_json(str(workplace / "data.jsonl"))
    data = data.rename_columns({"question": "prompt", "answer": "completion"})
    options = {"example_id_column": "uid", "cache_folder": workplace / "expected", **options}
    models = [str(workplace / one) for one in model] if isinstance(model, list) else str(workplace / model)
    return add_difficulty(data, models, by, **options)


def assert_equal(scored, of_library, columns):
    for name in columns:
        assert list(scored[name]) == pytest.approx(list(of_library[name]), rel=1e-5), name


def test_score_writes_data_figures_and_a_plot(scoring, workplace, tokenizer, capsys):
    assert score.main(scoring(output_dir="first")) == 0
    output = capsys.readouterr().out
    scored = load_split("first/scored.parquet", "train")
    assert scored.column_names == ["prompt", "completion", "uid", "label_tokens", *ALL, "difficulty_model"]
    assert_equal(scored, expected(workplace), ALL)
    model = transformers.AutoModelForCausalLM.from_pretrained("seed-0")
    plain = [plain_scores(model, row) for row in tokenize_sft(sft_data("prompt-completion", 14), tokenizer)]
    for name in ALL:
        assert list(scored[name]) == pytest.approx([of_row[name] for of_row in plain], rel=1e-5)
    figures = json.loads(Path("first/scores.json").read_text())
    assert (figures["rows"], figures["without_labels"], figures["by"]) == (14, 0, ALL)
    assert figures["coverage"] == {"coverage": 1.0, "uncovered": []}
    grand = np.array(scored["grand"])
    assert figures["scores"]["grand"]["median"] == pytest.approx(np.median(grand))
    assert figures["scores"]["grand"]["hardest"][0] == scored["uid"][int(grand.argmax())]
    assert figures["scores"]["grand"]["easiest"][0] == scored["uid"][int(grand.argmin())]
    assert figures["rank_correlations"]["loss, perplexity"] == pytest.approx(1)
    assert Path("first/difficulty.png").read_bytes()[:4] == b"\x89PNG"
    assert f"14 examples scored by {scored['difficulty_model'][0]}." in output
    assert f"hardest example {figures['scores']['el2n']['hardest'][0]}." in output
    assert "is in first/scored.parquet" in output
    assert "gradkit select --by el2n --fraction 0.5 --dataset_name first/scored.parquet" in output
    assert "gradkit sft --dataset_name first/scored.parquet" in output
    assert "scored already" not in output


def test_scored_data_is_selected_from_and_trained_on(scoring):
    """What the last words say to run next does run."""
    assert score.main(scoring(output_dir="train", by="el2n,loss")) == 0
    scored = load_split("train/scored.parquet", "train")
    command = "--by el2n --fraction 0.5 --dataset_name train/scored.parquet --output_dir selected"
    assert select.main(command.split()) == 0
    kept = load_split("selected/selected.parquet", "train")["uid"]
    assert set(kept) == {scored["uid"][i] for i in np.argsort(scored["el2n"])[-7:]}
    options = "--dataset_name train/scored.parquet --model_name_or_path seed-0 --output_dir trained --max_steps 1"
    options += " --bf16 false --activation_checkpointing false --report_to none --save_strategy no"
    assert sft.main(options.split()) == 0


def test_checkpoints_give_a_column_each(scoring, workplace):
    checkpoints = ["seed-0", "seed-1"]
    arguments = scoring(model_name_or_path="left out", checkpoints=checkpoints, output_dir="both", by=["grand"])
    assert score.main(arguments) == 0
    scored = load_split("both/scored.parquet", "train")
    of_library = expected(workplace, checkpoints, ["grand"])
    assert_equal(scored, of_library, ["grand_0", "grand_1", "grand"])
    assert scored["difficulty_model"][0].count("@") == 2
    figures = json.loads(Path("both/scores.json").read_text())
    assert -1 <= figures["rank_correlations"]["grand_0, grand_1"] < 1
    flags = ["--checkpoints", "seed-0", "seed-1", "--by", "grand", "--output_dir", "flags"]
    assert score.main([*scoring(model_name_or_path="left out", by="left out"), *flags]) == 0
    assert_equal(load_split("flags/scored.parquet", "train"), of_library, ["grand_0", "grand_1", "grand"])


def test_an_adapter_and_some_parameters(scoring, workplace):
    arguments = scoring(model_name_or_path="adapter", output_dir="lora", by="grand", parameters="lora_B")
    assert score.main(arguments) == 0
    of_library = expected(workplace, "adapter", ["grand"], parameters="lora_B")
    assert_equal(load_split("lora/scored.parquet", "train"), of_library, ["grand"])


def test_options_of_training_reach_the_labels(scoring, workplace, capsys):
    options = {"max_length": 16, "truncation_mode": "keep_end", "completion_only_loss": False, "eos_token": "<|user|>"}
    assert score.main(scoring(output_dir="options", by="loss", **options)) == 0
    of_library = expected(workplace, by="loss", layout=SFTFormat(**options))
    assert_equal(load_split("options/scored.parquet", "train"), of_library, ["loss", "label_tokens"])
    chat = scoring(dataset_name="chat.jsonl", column_mapping="left out", assistant_only_loss=True, output_dir="chat")
    assert score.main(chat) == 0
    assert score.main([*chat, "--assistant_only_loss", "false", "--output_dir", "chat-all"]) == 0
    tokens = [sum(load_split(f"{name}/scored.parquet", "train")["label_tokens"]) for name in ("chat", "chat-all")]
    assert tokens[0] < tokens[1]


def test_examples_without_labels(scoring, capsys):
    assert score.main(scoring(output_dir="cut", max_length=7)) == 0
    scored = load_split("cut/scored.parquet", "train")
    empty = [tokens == 0 for tokens in scored["label_tokens"]]
    assert f"{sum(empty)} of them have no label token, and empty scores." in capsys.readouterr().out
    assert [value is None for value in scored["grand"]] == empty
    assert json.loads(Path("cut/scores.json").read_text())["without_labels"] == sum(empty) > 0


def test_a_second_run_scores_nothing_and_other_scores_are_kept(scoring, monkeypatch, capsys):
    assert score.main(scoring(output_dir="twice")) == 0
    before = pq.read_table("twice/scored.parquet")
    monkeypatch.setattr("hf_gradkit.scoring.language_models.load_language_model", None)
    capsys.readouterr()
    assert score.main(scoring(output_dir="twice", per_device_eval_batch_size=5)) == 0
    assert "Everything was scored already" in capsys.readouterr().out
    assert pq.read_table("twice/scored.parquet").equals(before)
    assert score.main(scoring(output_dir="twice", by="loss")) == 2
    assert "`output_dir` 'twice' holds the scores of 'seed-0@" in capsys.readouterr().err
    assert pq.read_table("twice/scored.parquet").equals(before)
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"by": ["el2m"]}, "`by` is 'el2m'. Did you mean 'el2n'? Known scores: 'reward', 'loss', 'perplexity', "),
        ({"by": ["reward", "el2n"]}, "rewards are scores of preference pairs and the others of SFT data"),
        ({"by": []}, "`by` is ''. Known scores"),
        ({"by": "loss,loss"}, "`by` names a score twice"),
        ({"by": "reward"}, "`example_id_column` is 'uid', which is about SFT data"),
        ({"by": "el2n", "parameters": "norm"}, "`parameters` is 'norm', which is about GraNd, but `by` is 'el2n'"),
        ({"parameters": "nrom"}, "found in no name of a trainable parameter"),
        ({"checkpoints": ["seed-1"]}, "Both `model_name_or_path` ('seed-0') and `checkpoints` are set."),
        ({"model_name_or_path": "left out"}, "`model_name_or_path` is not set."),
        ({"model_name_or_path": "./gone"}, "The model folder './gone' does not exist"),
        ({"output_dir": "left out"}, "`output_dir` is not set."),
        ({"column_mapping": "left out"}, "Its columns: 'question', 'answer', 'uid'."),
        ({"example_id_column": "idx"}, "`example_id_column` is 'idx', but the data has no such column."),
        ({"max_length": 1}, "`max_length` must be an integer of at least 2"),
        ({"max_length": 2}, "No example has a label token"),
        ({"truncation_mode": "keep_middle"}, "Known modes: 'keep_start', 'keep_end'."),
        ({"assistant_only_loss": True}, "the data has no conversations"),
        ({"dataset_streaming": True}, "Load it without streaming"),
        ({"dtype": "float31"}, "`dtype` is 'float31'. Did you mean 'float32'?"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(changes, message, scoring, capsys):
    assert score.main(scoring(**{"output_dir": "wrong", **changes})) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not Path("wrong/scored.parquet").exists()


def test_a_tokenizer_without_a_chat_template(scoring, workplace, capsys):
    folder = workplace / "seed-0" / "chat_template.jinja"
    text = folder.read_text()
    try:
        folder.unlink()
        arguments = scoring(dataset_name="chat.jsonl", column_mapping="left out", output_dir="no-template")
        assert score.main(arguments) == 2
        assert "the tokenizer has no chat template" in capsys.readouterr().err
    finally:
        folder.write_text(text)


# ---- real processes -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sharded(workplace, tmp_path_factory):
    """Two real processes have scored the data by two checkpoints, twice."""
    folder = tmp_path_factory.mktemp("two")
    data = Dataset.from_json(str(workplace / "data.jsonl"))
    data.rename_columns({"question": "prompt", "answer": "completion"}).to_json(folder / "data.jsonl")
    case = {"data": str(folder / "data.jsonl"), "models": [str(workplace / f"seed-{seed}") for seed in (0, 1)]}
    results = Results("difficulty_cases.py", folder)
    for name, size in (("first", 2), ("again", 3)):
        path = folder / "case.json"
        path.write_text(json.dumps({"name": name, "by": ALL, "batch_size": size, **case}))
        launch(WORKER, [str(path), str(folder)]).assert_world("MULTI_CPU")
    return results


@pytest.mark.multiprocess
def test_two_processes_score_as_one(sharded, workplace):
    of_library = expected(workplace, ["seed-0", "seed-1"])
    for rank in (0, 1):
        found = sharded.of("first", rank)
        assert found["scored"] == 28
        assert found["ids"] == list(of_library["uid"])
        assert list(found["columns"]) == [c for name in ALL for c in (f"{name}_0", f"{name}_1", name)]
        assert_equal(found["columns"], of_library, found["columns"])
    assert sharded.of("first", 0) == sharded.of("first", 1)
    again = sharded.of("again", 1)
    assert again["scored"] == 0
    assert again["columns"] == sharded.of("first")["columns"]


@pytest.mark.multiprocess
@pytest.mark.parametrize("backend", ["multi_gpu", "fsdp2", "zero3"])
def test_the_command_on_two_processes(backend, scoring, workplace):
    """Under backends that shard what is trained, each process scores with a whole model."""
    arguments = scoring(output_dir=backend)
    launched = launch("hf_gradkit.cli.score", arguments, config=f"cpu/{backend}", cwd=workplace)
    launched.assert_command(backend)
    assert launched.output.count("14 examples scored by") == 1
    assert_equal(load_split(f"{backend}/scored.parquet", "train"), expected(workplace), ALL)


def finished(folder: Path) -> list[int]:
    """Return the rows that are on disk, as often as they are there."""
    streams = sorted(folder.glob("*/streams/*.arrow"))
    return [row for path in streams for batch in read_stream(path) for row in batch.column("row").to_pylist()]


@pytest.mark.multiprocess
def test_killed_and_resumed(workplace, tmp_path):
    """One process is killed with SIGKILL in the middle; two others finish, and score no example that was done."""
    data = Dataset.from_json(str(workplace / "data.jsonl"))
    data.rename_columns({"question": "prompt", "answer": "completion"}).to_json(tmp_path / "data.jsonl")
    case = {"data": str(tmp_path / "data.jsonl"), "models": str(workplace / "seed-0"), "by": ALL, "batch_size": 1}
    (tmp_path / "slow.json").write_text(json.dumps({"name": "slow", "seconds": 0.4, **case}))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, str(WORKER), str(tmp_path / "slow.json"), str(tmp_path)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    end = time.time() + 90
    while len(finished(tmp_path / "scores")) < 4 and time.time() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = finished(tmp_path / "scores")
    assert 4 <= len(done) == len(set(done)) < 14
    (tmp_path / "rest.json").write_text(json.dumps({"name": "rest", **case}))
    launch(WORKER, [str(tmp_path / "rest.json"), str(tmp_path)]).assert_world("MULTI_CPU")
    found = json.loads((tmp_path / "rest.rank0.json").read_text())
    assert found["scored"] == 14 - len(done)
    assert_equal(found["columns"], expected(workplace), ALL)
