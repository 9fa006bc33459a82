"""`gradkit reward` and `gradkit score`: from pairs to a file with margins, in one process and in two."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import Dataset, load_dataset

from hf_gradkit.cli import reward, score
from hf_gradkit.data.loading import load_split
from hf_gradkit.data.tiny import tiny_llama
from hf_gradkit.scoring import Folds, add_reward_margins, describe_model
from hub_server import hub
from launch import launch, run
from pairs import make_pairs, save_reward_model, write_pairs


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, tokenizer):
    """A folder with a base model, a reward model, and pairs whose columns need a mapping."""
    folder = tmp_path_factory.mktemp("score")
    tiny_llama(tokenizer, hidden_size=32).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    save_reward_model(tokenizer, folder / "reward")
    save_reward_model(tokenizer, folder / "other", seed=1)
    rows = [{"win": row["chosen"], "rejected": row["rejected"], "uid": i} for i, row in enumerate(make_pairs(14))]
    write_pairs(folder / "pairs.jsonl", rows)
    return folder


@pytest.fixture
def config(workplace, monkeypatch):
    """Write a YAML with these changes to a working one, and return its arguments."""
    monkeypatch.chdir(workplace)

    def write(**changes):
        values = {"dataset_name": "pairs.jsonl", "column_mapping": {"win": "chosen"}, **changes}
        Path("job.yaml").write_text(yaml.safe_dump({k: v for k, v in values.items() if v != "left out"}))
        return ["--config", "job.yaml"]

    return write


@pytest.fixture
def scoring(config):
    return lambda **changes: config(
        **{"by": "reward", "model_name_or_path": "reward", "output_dir": "out", "per_device_eval_batch_size": 3}
        | changes
    )


@pytest.fixture
def training(config):
    working = {"model_name_or_path": "base", "max_steps": 2, "bf16": False, "activation_checkpointing": False}
    working |= {"save_strategy": "steps", "save_steps": 1, "learning_rate": 0.05, "max_length": None}
    working |= {"disable_tqdm": True, "report_to": "none", "per_device_train_batch_size": 4}
    return lambda **changes: config(**{**working, **changes})


def expected(workplace, model="reward"):
    dataset = Dataset.from_json(str(workplace / "pairs.jsonl")).rename_column("win", "chosen")
    return add_reward_margins(dataset, str(workplace / model), cache_folder=workplace / "expected")


# ---- score ----------------------------------------------------------------------------------------------------


def test_score_writes_data_figures_and_a_plot(scoring, workplace, capsys):
    assert score.main(scoring(output_dir="first")) == 0
    output = capsys.readouterr().out
    scored = load_split("first/scored.parquet", "train")
    of_library = expected(workplace)
    added = ["reward_chosen", "reward_rejected", "reward_margin", "reward_model"]
    assert scored.column_names == ["chosen", "rejected", "uid", *added]
    assert scored["uid"] == list(range(14))
    assert list(scored["reward_margin"]) == pytest.approx(list(of_library["reward_margin"]), abs=1e-5)
    assert scored["reward_model"][0] == describe_model("reward")
    figures = json.loads(Path("first/scores.json").read_text())
    margins = np.array(scored["reward_margin"])
    assert figures["rows"] == 14
    assert figures["agreement"] == (margins > 0).mean()
    assert figures["mean_margin"] == pytest.approx(margins.mean())
    assert figures["model"] == describe_model("reward")
    assert "temperature" in figures
    assert Path("first/margins.png").read_bytes()[:4] == b"\x89PNG"
    assert "14 pairs scored by reward@" in output
    assert "gradkit dpo --dataset_name first/scored.parquet --weighting madpo" in output
    assert "scored already" not in output


def test_a_second_run_scores_nothing_and_says_so(scoring, monkeypatch, capsys):
    assert score.main(scoring(output_dir="twice")) == 0
    before = pq.read_table("twice/scored.parquet")
    monkeypatch.setattr("hf_gradkit.scoring.margins.load_reward_model", None)
    capsys.readouterr()
    assert score.main(scoring(output_dir="twice", per_device_eval_batch_size=5)) == 0
    assert "Everything was scored already" in capsys.readouterr().out
    assert pq.read_table("twice/scored.parquet").equals(before)


def test_other_scores_are_replaced_only_when_told_to(scoring, capsys):
    assert score.main(scoring(output_dir="kept")) == 0
    before = Path("kept/scored.parquet").read_bytes()
    capsys.readouterr()
    assert score.main(scoring(output_dir="kept", model_name_or_path="other")) == 2
    assert "`output_dir` 'kept' holds the scores of 'reward@" in capsys.readouterr().err
    assert Path("kept/scored.parquet").read_bytes() == before
    assert score.main([*scoring(output_dir="kept", model_name_or_path="other"), "--overwrite", "true"]) == 0
    assert load_split("kept/scored.parquet", "train")["reward_model"][0] == describe_model("other")


def test_scored_data_can_be_scored_again(scoring):
    assert score.main(scoring(output_dir="a")) == 0
    again = scoring(output_dir="b", dataset_name="a/scored.parquet", column_mapping="left out")
    assert score.main([*again, "--model_name_or_path", "other"]) == 0
    assert load_split("b/scored.parquet", "train")["reward_model"][0] == describe_model("other")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"by": "rewrad"}, "`by` is 'rewrad'. Did you mean 'reward'? Known scores: 'reward', 'loss', "),
        ({"model_name_or_path": "left out"}, "`model_name_or_path` is not set."),
        ({"output_dir": "left out"}, "`output_dir` is not set."),
        ({"dataset_name": "left out"}, "No data is named."),
        ({"column_mapping": "left out"}, "has no 'chosen'. Its columns: 'win', 'rejected', 'uid'."),
        ({"model_name_or_path": "base"}, "'base' has no reward head"),
        ({"model_name_or_path": "./gone"}, "The model folder './gone' does not exist"),
        ({"per_device_eval_batch_size": 0}, "`per_device_eval_batch_size` must be at least 1, but it is 0."),
        ({"eval_dataset_name": "pairs.jsonl"}, "which is not an option of gradkit score"),
        ({"dataset_streaming": True}, "Load it without streaming"),
        ({"batch_size": 4}, "'batch_size', which is not an option of gradkit score."),
        ({"dtype": "float31"}, "`dtype` is 'float31'. Did you mean 'float32'?"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(changes, message, scoring, capsys):
    assert score.main(scoring(**{"output_dir": "wrong", **changes})) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not Path("wrong/scored.parquet").exists()


@pytest.mark.multiprocess
def test_two_processes_score_as_one(scoring, workplace):
    launched = launch("hf_gradkit.cli.score", scoring(output_dir="two"), cwd=workplace)
    launched.assert_command("multi_gpu")
    assert launched.output.count("14 pairs scored by") == 1
    scored = load_split("two/scored.parquet", "train")
    assert list(scored["reward_margin"]) == pytest.approx(list(expected(workplace)["reward_margin"]), abs=1e-5)


@pytest.mark.multiprocess
def test_the_function_gives_all_ranks_the_same(workplace, tmp_path):
    rows = write_pairs(tmp_path / "pairs.jsonl", make_pairs(13, "messages"))
    case = {"kind": "pairs", "name": "pairs", "data": str(rows)}
    case |= {"model": str(workplace / "reward"), "other": str(workplace / "other")}
    (tmp_path / "case.json").write_text(json.dumps(case))
    worker = Path(__file__).parent / "workers" / "score_cases.py"
    launch(worker, [str(tmp_path / "case.json"), str(tmp_path)]).assert_world("MULTI_CPU")
    results = [json.loads((tmp_path / f"pairs.rank{rank}.json").read_text()) for rank in (0, 1)]
    assert results[0] == results[1]
    assert results[0]["first"] == 26
    assert results[0]["again"] == 0
    assert "another one" in results[0]["error"]
    alone = add_reward_margins(Dataset.from_json(str(rows)), case["model"], cache_folder=tmp_path / "alone")
    assert results[0]["columns"]["reward_margin"] == pytest.approx(list(alone["reward_margin"]), abs=1e-5)


def test_a_reward_model_of_the_hub(scoring, workplace, tmp_path):
    """Its name is enough, what it weighs is fetched once, and it is the same model as its copy on disk."""
    shutil.copytree(workplace / "reward", tmp_path / "hub" / "models" / "someone" / "reward")
    arguments = scoring(model_name_or_path="someone/reward", output_dir=str(tmp_path / "out"))
    with hub(tmp_path / "hub") as (endpoint, requests):
        environment = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home"), "CI": "1"}
        command = [sys.executable, "-m", "hf_gradkit.cli.main", "score", *arguments]
        ended = run(command, timeout=120, env=environment, cwd=workplace)
    assert ended.returncode == 0, ended.output[-4000:]
    assert sum(request.startswith("GET someone/reward/resolve/") for request in requests) >= 3
    scored = load_split(str(tmp_path / "out" / "scored.parquet"), "train")
    name, content = scored["reward_model"][0].split("@")
    assert name == "someone/reward"
    assert content == describe_model("reward").split("@")[1]


# ---- reward ---------------------------------------------------------------------------------------------------


def test_reward_trains_a_model_that_scores(training, scoring, capsys):
    assert reward.main(training(output_dir="trained")) == 0
    assert "gradkit score --by reward --model_name_or_path trained" in capsys.readouterr().out
    assert json.loads(Path("trained/trainer_state.json").read_text())["global_step"] == 2
    assert score.main(scoring(model_name_or_path="trained", output_dir="by-trained")) == 0


def test_reward_with_lora_saves_the_head(training, scoring):
    """TRL's default task type would leave it random, and out of the folder."""
    lora = {"use_peft": True, "lora_target_modules": "all-linear", "lora_r": 2}
    assert reward.main(training(output_dir="lora", **lora)) == 0
    assert not Path("lora/model.safetensors").exists()
    assert score.main(scoring(model_name_or_path="lora", output_dir="by-lora")) == 0


def test_folds_from_training_to_scores(training, scoring, tokenizer, monkeypatch, capsys):
    arguments = training(output_dir="folds", folds=2, fold_seed=2)
    assert reward.main(arguments) == 0
    assert json.loads(Path("folds/folds.json").read_text()) == {"format": 1, "folds": 2, "seed": 2}
    assert "2 reward models are in folds" in capsys.readouterr().out
    assert score.main(scoring(model_name_or_path="folds", output_dir="by-folds")) == 0
    scored = load_split("by-folds/scored.parquet", "train")
    assigned = Folds(2, 2).of_rows(scored)
    plain = scored.select_columns(["chosen", "rejected"])
    for fold in (0, 1):
        rows = np.flatnonzero(assigned == fold)
        of_model = add_reward_margins(plain.select(rows), f"folds/fold-{fold}", cache_folder="parts")
        kept = np.array(scored["reward_margin"])[rows]
        assert kept == pytest.approx(np.array(of_model["reward_margin"]), abs=1e-5)
    # A single model beside them would be overlooked.
    assert reward.main(training(output_dir="folds")) == 2
    assert "holds the reward models of folds" in capsys.readouterr().err
    # Killed in the middle: what is trained stays, the rest goes on.
    Path("folds/folds.json").unlink()
    shutil.rmtree("folds/fold-1")
    stamp = Path("folds/fold-0/model.safetensors").stat().st_mtime_ns
    assert score.main(scoring(model_name_or_path="folds", output_dir="unfinished")) == 2
    assert "did not come to its end" in capsys.readouterr().err
    resumed = ["--resume_from_checkpoint", "true"]
    assert reward.main([*training(output_dir="folds", folds=2, fold_seed=3), *resumed]) == 2
    assert "of other folds, of another `fold_seed` or other pairs" in capsys.readouterr().err
    assert reward.main([*training(output_dir="folds", folds=2, fold_seed=2), *resumed]) == 0
    assert Path("folds/folds.json").exists()
    assert Path("folds/fold-0/model.safetensors").stat().st_mtime_ns == stamp


def test_a_fold_was_not_trained_on(training, monkeypatch):
    seen = []
    build = reward.build_trainer

    def spy(args, model, train, evaluation):
        seen.append(set(train["uid"]))
        return build(args, model, train, evaluation)

    monkeypatch.setattr(reward, "build_trainer", spy)
    assert reward.main(training(output_dir="unseen", folds=2)) == 0
    pairs = load_dataset("json", data_files="pairs.jsonl", split="train").rename_column("win", "chosen")
    assigned = Folds(2).of_rows(pairs)
    assert seen == [set(np.flatnonzero(assigned != fold)) for fold in (0, 1)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folds": 1}, "`folds` must be an integer of at least 2, but it is 1."),
        ({"folds": 500}, "there are too few prompts: set fewer folds"),
        ({"folds": 2, "dataset_streaming": True}, "streamed data cannot be divided"),
        ({"folds": 2, "push_to_hub": True}, "a repository of the Hub holds one model"),
        ({"folds": 2, "resume_from_checkpoint": "base"}, "each model has checkpoints of its own"),
        (
            {"column_mapping": "left out"},
            "the training data does not have them. Its columns: 'win', 'rejected', 'uid'.",
        ),
        ({"resume_from_checkpoint": True}, "holds no checkpoint"),
    ],
)
def test_reward_refuses(changes, message, training, capsys):
    assert reward.main(training(output_dir="refused", **changes)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.multiprocess
def test_folds_on_two_processes(training, workplace):
    arguments = training(output_dir="two-folds", folds=2, fold_seed=2)
    launched = launch("hf_gradkit.cli.reward", arguments, cwd=workplace)
    launched.assert_backend("multi_gpu")
    assert launched.output.count("2 reward models are in two-folds") == 1
    for fold in (0, 1):
        state = json.loads((workplace / "two-folds" / f"fold-{fold}" / "trainer_state.json").read_text())
        assert state["global_step"] == 2
