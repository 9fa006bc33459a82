"""Data that a script split by rank before the loader does so again: told from healthy data, of any kind of loader."""

import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset, Image
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader, TensorDataset

from helpers import text_dataset
from hf_gradkit.callbacks.given_data import given_data, split_twice, steps_of_epoch


def of_ranks(datasets, **options):
    """What the ranks say, each of its own data, in loaders as accelerate makes them for two processes."""
    found = []
    for rank, dataset in enumerate(datasets):
        loader = DataLoader(dataset, 4)
        options = {"num_processes": 2, "process_index": rank, "put_on_device": True, **options}
        found.append(given_data(prepare_data_loader(loader, torch.device("cpu"), **options)))
    return found


def halves(dataset):
    return [split_dataset_by_node(dataset, rank, 2) for rank in range(2)]


ROWS = text_dataset(64)
STREAM = ROWS.to_iterable_dataset(num_shards=1)
SHARDS = ROWS.to_iterable_dataset(num_shards=4)  # which accelerate gives to the ranks
RANDOM = ROWS.with_transform(lambda rows: {"x": torch.rand(len(rows["text"]))})
TENSORS = TensorDataset(torch.randn(16, 2))


@pytest.mark.parametrize(
    "data", [ROWS, ROWS.select(range(1)), STREAM, SHARDS, RANDOM, TENSORS, STREAM.map(lambda row: row)]
)
@pytest.mark.parametrize("dispatch", [True, False], ids=["dispatched", "not dispatched"])
def test_the_same_data_on_all_ranks(data, dispatch):
    assert split_twice(of_ranks([data, data], dispatch_batches=dispatch)) is None


def test_data_that_only_the_first_rank_reads():
    assert split_twice(of_ranks([ROWS, text_dataset(1)], dispatch_batches=True)) is None


def test_loaders_that_split_nothing():
    for data in (ROWS, STREAM):
        assert split_twice([given_data(DataLoader(half)) for half in halves(data)]) is None
    whole = of_ranks([ROWS, ROWS], dispatch_batches=False)
    assert split_twice([whole[0], given_data(DataLoader(ROWS))]) is None
    assert split_twice([given_data(None), given_data(None)]) is None


def test_a_few_rows_that_each_rank_made_by_itself():
    def made(rank):
        return ROWS.map(lambda row, i: {"text": f"{row['text']} {rank if i % 4 == 0 else ''}"}, with_indices=True)

    assert split_twice(of_ranks([made(0), made(1)], dispatch_batches=False)) is None


@pytest.mark.parametrize(
    ("parts", "found"),
    [
        (halves(ROWS), "as many rows each, 32, but others"),
        ([ROWS.shard(2, rank, contiguous=False) for rank in range(2)], "as many rows each, 32, but others"),
        (halves(ROWS.select(range(63))), "different numbers of rows, 32, 31"),
        ([TensorDataset(torch.randn(rows, 2)) for rows in (5, 4)], "different numbers of rows, 5, 4"),
        (halves(STREAM), "the stream was split by `split_dataset_by_node`"),
        (halves(SHARDS.map(lambda row: row)), "the stream was split by `split_dataset_by_node`"),
    ],
)
def test_data_that_were_split_already(parts, found):
    message = split_twice(of_ranks(parts, dispatch_batches=False))
    assert found in message
    assert "1 of 2 rows are never seen. Give all ranks the same data" in message


def test_a_split_stream_of_which_the_first_rank_hands_out_batches():
    assert "the stream was split" in split_twice(of_ranks(halves(STREAM), dispatch_batches=True))


def test_where_images_lie_is_not_compared():
    def of(folder):
        rows = {"image": [f"{folder}/{i}.png" for i in range(8)], "labels": list(range(8))}
        return Dataset.from_dict(rows).cast_column("image", Image())

    assert split_twice(of_ranks([of("/here"), of("/there")], dispatch_batches=False)) is None


def test_steps_that_an_epoch_has():
    loaders = [DataLoader(ROWS, 4), DataLoader(ROWS, 4, shuffle=True), DataLoader(STREAM, 4)]
    options = {"num_processes": 2, "process_index": 0, "dispatch_batches": False}
    in_order, shuffled, stream = (prepare_data_loader(loader, torch.device("cpu"), **options) for loader in loaders)
    assert [steps_of_epoch(shuffled, accumulation, 4) for accumulation in (1, 2, 100)] == [8, 4, 1]
    assert [steps_of_epoch(in_order, 1, every) for every in (1, 3, 4, 16)] == [8, 8, 2, 1]  # of an epoch's, monitored
    assert steps_of_epoch(stream, 1, 1) is None
