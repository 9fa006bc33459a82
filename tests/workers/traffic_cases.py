"""Run in each of two processes: count the bytes that a rank hands to collectives, with a feature and without."""

import json
import sys
from collections import Counter
from pathlib import Path

import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d
import torch.distributed.fsdp._fully_shard._fsdp_param_group as fsdp
import trl
from datasets import Dataset
from transformers import AutoTokenizer

import hf_gradkit
from helpers import make_rows, make_trainer, text_dataset
from hf_gradkit import (
    EntanglementCallback,
    GradientStatisticsCallback,
    PrivacyAuditCallback,
    WorkerConsistencyCallback,
)
from hf_gradkit._backends import prepare_cpu_backends
from hf_gradkit.audit import audit_extraction, audit_membership
from hf_gradkit.cli.job import release
from hf_gradkit.scoring import add_difficulty, add_reward_margins
from hf_gradkit.selection import FiFA
from launch import report_world
from pair_helpers import OURS, dpo, pairs

COLLECTIVES = ("all_gather_into_tensor", "all_gather", "all_reduce", "broadcast")
OBJECTS = ("all_gather_object", "broadcast_object_list")
CALLBACKS = {
    "entanglement": EntanglementCallback,
    "consistency": WorkerConsistencyCallback,
    "statistics": GradientStatisticsCallback,
    "privacy_audit": PrivacyAuditCallback,
}
HALF = 13  # members of the audit in a callback, and as many non-members


class Traffic:
    """Counts what this process gives to collectives from Python; DDP's own reductions run in C++ and are not seen.

    Parameters that FSDP2 gathers are under "parameters"; DeepSpeed is the only one to use `all_gather_into_tensor`
    between CPUs. "objects" are the gathers of objects, "object_bytes" what they gather as tensors.
    """

    def __init__(self):
        self.bytes: Counter[str] = Counter()
        self._inside = None
        for name in (*COLLECTIVES, *OBJECTS):
            setattr(dist, name, self._counted(name, getattr(dist, name)))
        for name in ("all_gather", "broadcast"):  # which those of objects are made of
            setattr(c10d, name, self._counted(name, getattr(c10d, name)))
        fsdp.foreach_all_gather = self._of_parameters(fsdp.foreach_all_gather)

    def _counted(self, name, original):
        def collective(*positional, **keywords):
            outer, self._inside = self._inside, self._inside or name
            given = [*positional, *keywords.values()]  # DeepSpeed names what it gives, in the same order
            tensor = given[1] if name in ("all_gather_into_tensor", "all_gather") else given[0]
            if name in OBJECTS:
                self.bytes["objects" if name == "all_gather_object" else "told"] += 1
            elif outer in OBJECTS:
                self.bytes["object_bytes"] += tensor.numel() * tensor.element_size()
            elif outer is None:
                self.bytes[name] += tensor.numel() * tensor.element_size()
            try:
                return original(*positional, **keywords)
            finally:
                self._inside = outer

        return collective

    def _of_parameters(self, original):
        def gather(*positional, **keywords):
            result = original(*positional, **keywords)
            whole = result.all_gather_output
            self.bytes["parameters"] += whole.numel() * whole.element_size() // dist.get_world_size()
            return result

        return gather

    def take(self) -> dict[str, int]:
        """Return the counts, and start anew."""
        taken = dict(self.bytes)
        self.bytes.clear()
        return taken


def halves(size: int = HALF) -> list[Dataset]:
    rows = [{"text": row["text"] + " and so on and on"} for row in make_rows(2 * size)]
    return [Dataset.from_list(rows[:size]), Dataset.from_list(rows[size:])]


def build(case: dict, folder: Path, tokenizer):
    """Return the trainer of a case."""
    options = {"per_device_train_batch_size": case["batch"], "max_steps": case["steps"], "logging_steps": 1000}
    options |= case["options"]
    if case["kind"] == "dpo":
        data = pairs(256, "reward_margin")
        trainer = dpo(*OURS, str(folder / "policy"), folder / case["name"], data, **options)
    else:
        module = trl if case["kind"] == "trl" else hf_gradkit
        data = text_dataset(case["rows"], "source")
        trainer = make_trainer(module.SFTTrainer, module.SFTConfig, tokenizer, folder / case["name"], data, **options)
    for name, keywords in case["callbacks"].items():
        if name == "privacy_audit":
            keywords["members"], keywords["non_members"] = halves()
        trainer.add_callback(CALLBACKS[name](trainer=trainer, **keywords))
    return trainer


def membership(policy: str, reward_model: str, rows: int, **options) -> None:
    audit_membership(policy, *halves(rows // 2), bootstrap_rounds=10, **options)


def extraction(policy: str, reward_model: str, rows: int, **options) -> None:
    audit_extraction(policy, *halves(rows // 2), **options)


def difficulty(policy: str, reward_model: str, rows: int, **options) -> None:
    add_difficulty(text_dataset(rows), policy, ["loss", "grand"], **options)


def margins(policy: str, reward_model: str, rows: int, **options) -> None:
    add_reward_margins(pairs(rows), reward_model, **options)


def selection(policy: str, reward_model: str, rows: int, **options) -> None:
    quality = {"by": "perplexity", "model": policy}
    FiFA(margin={"by": "reward_model", "model": reward_model}, quality=quality, **options).select(pairs(rows))


WITHOUT_TRAINER = {
    "membership": membership,
    "extraction": extraction,
    "difficulty": difficulty,
    "margins": margins,
    "selection": selection,
}


def main() -> None:
    prepare_cpu_backends()
    cases, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    traffic, counted, trainer = Traffic(), {}, None
    for case in sorted(cases, key=lambda case: case["kind"] not in WITHOUT_TRAINER):  # before any trainer
        if case["kind"] in WITHOUT_TRAINER:
            traffic.take()
            models = (str(folder / "policy"), str(folder / "reward_model"))
            cache = folder / f"{case['name']}-cache"
            WITHOUT_TRAINER[case["kind"]](*models, case["rows"], cache_folder=cache, **case["options"])
            counted[case["name"]] = traffic.take()
            continue
        if trainer is not None:
            release(trainer)
        trainer = build(case, folder, tokenizer)
        traffic.take()
        trainer.train()
        counted[case["name"]] = traffic.take()
    if dist.get_rank() == 0:
        (folder / "traffic.json").write_text(json.dumps(counted))
    report_world(trainer)


if __name__ == "__main__":
    main()
