"""Every Python block of README and docs runs, and every YAML block is a configuration, as a reader would find them.

What a page takes for granted - a trainer, pairs, a model called Qwen/Qwen3-0.6B - is here: tiny, real and offline.
"""

import ast
import re
import shutil
from pathlib import Path

import pytest
import torch
import transformers
import trl
from datasets import Dataset, DatasetDict
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

import hf_gradkit
from audit_helpers import records
from documents import ROOT, Block, blocks, pages
from helpers import DEFAULTS, dataset_of
from hf_gradkit.cli.arguments import parse_job
from hf_gradkit.weighting import LossRecord
from job_types import TYPES
from pair_helpers import pairs
from pairs import save_reward_model

PAGES = pages("docs", "recipes")
PYTHON = [block for page in PAGES for block in blocks(page, "python")]
YAML = [block for page in PAGES for block in blocks(page, "yaml")]
POLICIES = ("Qwen/Qwen3-0.6B", "base", "runs/model", "runs/sft/checkpoint-200", "runs/sft")


@pytest.fixture(scope="module")
def folder(policy, tokenizer, tmp_path_factory):
    """A working directory in which the names of the documentation are folders with tiny models."""
    top = tmp_path_factory.mktemp("reader")
    for name in POLICIES:
        shutil.copytree(policy, top / name, dirs_exist_ok=True)
    save_reward_model(tokenizer, top / "runs/reward")
    return top


@pytest.fixture(autouse=True)
def on_a_cpu_where_there_is_no_gpu(monkeypatch):
    """The pages speak to readers with a GPU, and TRL's configurations ask for bfloat16 there."""
    check = transformers.TrainingArguments.__post_init__

    def post_init(args):
        if not torch.accelerator.is_available():
            args.use_cpu = True
        check(args)

    monkeypatch.setattr(transformers.TrainingArguments, "__post_init__", post_init)


# ---- what the pages take for granted, by name; each is made where a block uses it and does not make it itself -------


def preference_trainer() -> trl.DPOTrainer:
    """TRL's own trainer, as it is."""
    args = trl.DPOConfig("out", **{**DEFAULTS, "max_steps": 2})
    return trl.DPOTrainer("Qwen/Qwen3-0.6B", args=args, train_dataset=pairs(24))


def sft_trainer() -> trl.SFTTrainer:
    """TRL's own trainer, with data to evaluate on."""
    args = trl.SFTConfig("out", **{**DEFAULTS, "max_steps": -1, "num_train_epochs": 1})
    split = records(60).select_columns(["text"]).train_test_split(0.3, seed=0)
    return trl.SFTTrainer("base", args=args, train_dataset=split["train"], eval_dataset=split["test"])


def examples(block: str) -> Dataset | DatasetDict:
    """The data set that a block trains on, scores or selects from."""
    if "per_example_loss" in block:
        rows = [{"input_ids": [5, 6, 7, i], "attention_mask": [1] * 4, "target": i / 24} for i in range(24)]
        return Dataset.from_list(rows)
    if "rejected" in block or "FiFA" in block:
        return pairs(24, "reward_margin")
    if "hold_out" in block:
        return records(80)
    return dataset_of(24, "prompt", "completion", "source")


def token_ids() -> torch.Tensor:
    return torch.randint(5, 200, (3, 8), generator=torch.Generator().manual_seed(0))


def given(name: str, block: str):
    """Return what a page calls by this name."""
    if name == "trainer":
        return sft_trainer() if re.search("PrivacyAudit|GradientStat|WorkerCons", block) else preference_trainer()
    makers = {
        "pairs": lambda: pairs(24, "source"),
        "dataset": lambda: examples(block),
        "model": lambda: AutoModelForCausalLM.from_pretrained("base"),
        "ids": token_ids,
        "labels": token_ids,
        "mask": lambda: torch.ones(3, 8, dtype=torch.long),
        "rows": lambda: torch.arange(8),
        "losses": lambda: torch.linspace(1, 2, 8),
        "DataLoader": lambda: DataLoader,
        "DPOConfig": lambda: hf_gradkit.DPOConfig,
    }
    return makers[name]()


NAMES = ("trainer", "pairs", "dataset", "model", "ids", "labels", "mask", "rows", "losses", "DataLoader", "DPOConfig")


# ---- running them ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.name)
def test_a_block_runs(block, folder, monkeypatch):
    monkeypatch.chdir(folder)
    shutil.rmtree("out", ignore_errors=True)
    tree = ast.parse(block.text, block.name)
    names = run(tree, block)
    for comment, value in printed(tree, block.text, names):
        assert repr(value) == comment
    if "trainer.add_callback" in block.text:  # the sentence around it says that the trainer is then trained
        names["trainer"].train()
        assert (
            list(Path("out").glob("*.jsonl")) or "WorkerConsistency" in block.text
        )  # one worker has nobody to differ
    for name, use in USES.items():
        if name in names:
            use(names[name], names)


def run(tree: ast.Module, block: Block) -> dict:
    """Run a block and return its names; those that it does not make itself are given to it."""
    code = compile(tree, block.name, "exec")
    names = {"__name__": "documentation"}
    loaded = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    made = made_before_use(tree)
    names |= {name: given(name, block.text) for name in NAMES if name in loaded - made}
    exec(code, names)
    return names


def made_before_use(tree: ast.Module) -> set[str]:
    """Return the names that a block assigns, imports or defines itself."""
    stored = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    return stored | {alias.asname or alias.name for node in imports for alias in node.names}


def printed(tree: ast.Module, text: str, names: dict):
    """Yield each value that a comment beside it states, as in `weights(losses)  # tensor([1., 2.])`."""
    lines = text.splitlines()
    for node in tree.body:
        comment = lines[node.end_lineno - 1][node.end_col_offset :].strip().removeprefix("#").strip()
        if isinstance(node, ast.Expr) and comment.startswith("tensor("):
            yield comment, eval(compile(ast.Expression(node.value), "comment", "eval"), names)


# ---- methods that a page defines are used, too ----------------------------------------------------------------------


def weigh(method: type, names: dict) -> None:
    weights = method(k=2)(LossRecord(torch.tensor([0.5, 3.0, 1.0, 2.0])))
    assert weights.tolist() == [0.0, 2.0, 0.0, 2.0]


def compare(objective: type, names: dict) -> None:
    zeros, chosen = torch.zeros(3), torch.tensor([-2.0, 0.0, 4.0])  # with a reference of zeros these are the margins
    record = names["PreferenceRecord"](chosen, zeros, zeros, zeros, zeros + 5, zeros + 5, beta=0.5)
    assert objective().preference(record).tolist() == [4.0, 1.0, 0.0]


def keep(selector: type, names: dict) -> None:
    prompts = ["a ? ?", "b", "c ?", "d ? ? ?"]
    data = Dataset.from_list([{"prompt": prompt, "completion": "yes"} for prompt in prompts])
    assert selector(fraction=0.5).select(data).dataset["prompt"][:] == ["b", "c ?"]


USES = {"HardestTwice": weigh, "SquaredHinge": compare, "FewestQuestions": keep}


# ---- YAML -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", YAML, ids=lambda block: block.name)
def test_a_yaml_block_is_a_configuration_of_a_job(block, tmp_path):
    path = tmp_path / "block.yaml"
    path.write_text(block.text)
    errors = []
    for job, types in TYPES.items():
        try:
            parse_job(job, types, ["--config", str(path)])
            return
        except ValueError as error:
            errors.append(f"{job}: {error}")
    raise AssertionError("\n".join(errors))


def test_there_are_blocks():
    assert len(PYTHON) > 20
    assert len(YAML) > 5
    assert {block.page.name for block in PYTHON} >= {"README.md", "quickstart.md"}
    assert ROOT in PYTHON[0].page.parents
