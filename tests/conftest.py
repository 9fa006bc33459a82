"""Fixtures: real models and tokenizers, small; no test reaches the network."""

import gc
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parent))

import datasets
import pytest

from helpers import make_rows
from hf_gradkit.data.tiny import train_tokenizer
from pair_helpers import save_policy

datasets.disable_progress_bars()


def pytest_collection_finish():
    """Leave what is imported by now to stay: every start of a trainer collects garbage, and would walk through it."""
    gc.freeze()


@pytest.fixture(scope="session")
def tokenizer():
    """A tokenizer of 300 tokens, trained on the rows that the tests train on."""
    return train_tokenizer([row["text"] for row in make_rows(64)], vocab_size=300)


@pytest.fixture(scope="session")
def policy(tokenizer, tmp_path_factory):
    """The folder of a tiny policy, from where TRL loads policy and reference."""
    return save_policy(tmp_path_factory.mktemp("policy"), tokenizer)
