"""More that can be wrong between workers, and healthy runs that only look like it, on real processes."""

import json
from pathlib import Path

import pytest
import torch
from test_worker_consistency import STEPS, WORKER, lines, result

from hf_gradkit.callbacks.shard_check import ShardCheck
from launch import launch

# ---- rows that nobody saw -------------------------------------------------------------------------------------------


def epoch(shards, size=8):
    check = ShardCheck(len(shards))
    for start in range(0, len(shards[0]), size):
        check.add([shard[start : start + size] for shard in shards])
    return check


@pytest.mark.parametrize("copies", [1, 4])
def test_an_epoch_of_all_rows_lacks_none(copies):
    data = (torch.randperm(500, generator=torch.Generator().manual_seed(0)) // copies).tolist()
    for order in (data, data[:496], data + data[:12]):  # whole, the last step dropped or filled up
        assert epoch([order[0::2], order[1::2]]).lack(500) is None


def test_rows_given_to_no_worker():
    data = list(range(500))
    lack = epoch([data[0::4], data[1::4]]).lack(500)
    assert lack.rows == 250
    assert "250 of 500 rows were given to no worker" in lack.cause
    looping = epoch([data[0::2], data[1:51:2] * 10]).lack(500)
    assert looping.rows == 225
    assert "worker 1 was given 25 different examples in 250 rows" in looping.cause
    blank = epoch([data[0::4], data[1::4]])
    blank.add([[], []])  # not all was told apart
    assert blank.lack(500) is None


@pytest.mark.parametrize(("rows", "first", "last"), [(512, 11, 11), (2000, 16, 21), (10_000, 36, 46)])
def test_seeds_of_their_own_are_found_after_as_many_steps_as_the_page_says(rows, first, last):
    """About the square root of the rows; looked at every five steps."""
    page = (Path(__file__).parents[1] / "docs/worker_consistency.md").read_text()
    span = f"{first}" if first == last else f"{first}-{last}"
    cells = [line.split("|")[2:-1] for line in page.splitlines() if line.startswith(("| rows of", "| found at"))]
    assert (f" {rows:,} ", f" {span} ") in list(zip(*cells, strict=True))
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        shards = [torch.randperm(rows, generator=generator) for _ in range(2)]
        check, step = ShardCheck(2), 0
        while step % 5 != 1 or check.finding() is None:
            check.add([shard[8 * step : 8 * step + 8].tolist() for shard in shards])
            step += 1
        assert first <= step <= last


# ---- real processes -------------------------------------------------------------------------------------------------

EPOCH = {"num_train_epochs": 1, "max_steps": -1, "per_device_train_batch_size": 8}
LONG = {**STEPS, "max_steps": 40}
LENGTH = {**LONG, "train_sampling_strategy": "group_by_length"}
OVERFIT = {**STEPS, "max_steps": 30, "train_sampling_strategy": "sequential"}
IMAGES = {"max_steps": 4, "per_device_train_batch_size": 4}
SAVED = {**STEPS, "max_steps": 6, "save_strategy": "steps", "save_steps": 3}
CASES = [
    {"name": "epoch", "kind": "healthy", "rows": 250, "options": EPOCH},
    {"name": "wrong world", "kind": "wrong world", "rows": 256, "options": EPOCH},
    {"name": "loops", "kind": "loops", "rows": 512, "options": EPOCH},
    {"name": "scaled", "kind": "scaled", "options": LONG},
    {"name": "flipped", "kind": "flipped", "options": LONG},
    *({"name": f"length {s}", "kind": "healthy", "rows": 1024, "options": {**LENGTH, "seed": s}} for s in range(3)),
    {"name": "split", "kind": "split", "options": {**STEPS, "max_steps": 3}},
    {"name": "few rows", "kind": "healthy", "rows": 16, "options": OVERFIT},
    {"name": "again", "kind": "own order", "seeds": [3, 3], "interrupted": 4, "options": {**STEPS, "max_steps": 5}},
    {"name": "images", "kind": "images", "options": IMAGES},
    {"name": "images 2", "kind": "images", "options": {**IMAGES, "gradient_accumulation_steps": 2}},
    {"name": "saved", "kind": "healthy", "rows": 160, "options": SAVED},
    {"name": "resumed", "kind": "healthy", "rows": 160, "resume": "saved/checkpoint-3", "options": EPOCH},
    {"name": "later hook", "kind": "healthy", "hook": "later", "options": {**STEPS, "max_steps": 1}},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    (folder / "cases.json").write_text(json.dumps(CASES))
    launch(WORKER, [str(folder / "cases.json"), str(folder)], timeout=400).assert_backend("multi_gpu")
    return folder


@pytest.mark.multiprocess
def test_missing_rows_are_reported_on_their_own(folder):
    assert result(folder, "epoch")["warnings"] == []
    assert not any("consistency/missing" in line for line in lines(folder, "epoch"))
    for name, rows, part in (("wrong world", 128, "given to no worker"), ("loops", None, "a part of its shard")):
        (warning,) = result(folder, name)["warnings"]
        assert part in warning
        (missing,) = [line["consistency/missing"] for line in lines(folder, name) if "consistency/missing" in line]
        assert missing == rows or (rows is None and 190 < missing < 256)


@pytest.mark.multiprocess
def test_gradients_far_apart_are_reported(folder):
    (norm, *more) = result(folder, "scaled")["warnings"]
    assert "The gradient norm of worker 1 has been" in norm
    assert all("point apart" in warning for warning in more)
    (direction,) = result(folder, "flipped")["warnings"]
    assert "The gradients of the two workers point apart: a mean cosine of -0." in direction


@pytest.mark.multiprocess
@pytest.mark.parametrize("seed", range(3))
def test_batches_sorted_by_length_are_no_alarm(folder, seed):
    assert result(folder, f"length {seed}")["warnings"] == []


@pytest.mark.multiprocess
def test_an_overfitting_check_on_few_rows_is_no_alarm(folder):
    """Each worker has one batch, the same in each epoch, whose loss and gradient are its own."""
    assert result(folder, "few rows")["warnings"] == []


@pytest.mark.multiprocess
def test_data_that_were_split_by_rank_already(folder):
    (warning,) = result(folder, "split")["warnings"]
    assert "the data loader splits them again: the ranks were given as many rows each, 256, but others" in warning
    assert "So 1 of 2 rows are never seen. Give all ranks the same data" in warning


@pytest.mark.multiprocess
def test_what_an_interrupted_run_leaves_goes_when_a_monitor_trains_the_model_again(folder):
    found = result(folder, "again")
    assert found["left"] == [True, False]
    assert [("the same batches" in warning) for warning in found["warnings"]] == [True, True]  # in each run


@pytest.mark.multiprocess
@pytest.mark.parametrize("name", ["images", "images 2"])
def test_a_model_without_token_ids_is_watched_as_far_as_that_goes(folder, name):
    (blind, *noise) = sorted(result(folder, name)["warnings"], key=lambda text: "cannot tell examples" not in text)
    assert "without `input_ids`" in blind
    assert ["called without `input_ids` or `inputs_embeds`" in text for text in noise] == [True] * (name == "images")
    last = lines(folder, name)[-1]
    assert last["consistency/direction"] < 1
    assert "consistency/direction_expected" not in last


@pytest.mark.multiprocess
def test_a_resumed_run_says_what_starts_anew(folder):
    (warning,) = result(folder, "resumed")["warnings"]
    assert "windows of WorkerConsistencyCallback start anew" in warning
    assert "Rows of this epoch from before the checkpoint are not compared" in warning
    assert not any("consistency/missing" in line for line in lines(folder, "resumed"))


@pytest.mark.multiprocess
def test_a_hook_of_the_users_own_that_comes_later_is_told_to_come_first(folder):
    assert "Register yours first" in result(folder, "later hook")["error"]
