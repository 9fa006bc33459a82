"""Run in each of two processes: count the bytes that a rank hands to collectives, with a feature and without."""

import json
import sys
from collections import Counter
from pathlib import Path

import torch.distributed as dist
import trl

import hf_gradkit
from helpers import make_rows, make_trainer, text_dataset
from hf_gradkit import EntanglementCallback, WorkerConsistencyCallback
from hf_gradkit.cli.job import release
from hf_gradkit.data.tiny import train_tokenizer
from launch import report_world
from pair_helpers import OURS, dpo, pairs

COLLECTIVES = ("all_gather_into_tensor", "all_gather", "all_reduce", "all_gather_object", "broadcast")


class Traffic:
    """Counts what this process gives to collectives from Python; DDP's own reductions run in C++ and are not seen."""

    def __init__(self):
        self.bytes: Counter[str] = Counter()
        self._inside = False
        for name in COLLECTIVES:
            setattr(dist, name, self._counted(name, getattr(dist, name)))

    def _counted(self, name, original):
        def collective(*positional, **keywords):
            outer, self._inside = self._inside, True  # an object gather is made of tensor gathers
            if not outer:
                tensor = positional[1] if name in ("all_gather_into_tensor", "all_gather") else positional[0]
                if name == "all_gather_object":
                    self.bytes["objects"] += 1
                else:
                    self.bytes[name] += tensor.numel() * tensor.element_size()
            try:
                return original(*positional, **keywords)
            finally:
                self._inside = outer

        return collective

    def take(self) -> dict[str, int]:
        """Return the counts, and start anew."""
        taken = dict(self.bytes)
        self.bytes.clear()
        return taken


def main() -> None:
    cases, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    tokenizer = train_tokenizer([row["text"] for row in make_rows(64)], vocab_size=300)
    traffic, counted = Traffic(), {}
    for case in cases:
        options = {"per_device_train_batch_size": case["batch"], "max_steps": case["steps"], "logging_steps": 1000}
        output = folder / case["name"]
        if case["kind"] == "sft":
            classes = (
                (hf_gradkit.SFTTrainer, hf_gradkit.SFTConfig) if case["options"] else (trl.SFTTrainer, trl.SFTConfig)
            )
            trainer = make_trainer(*classes, tokenizer, output, text_dataset(512), **options, **case["options"])
        else:
            trainer = dpo(*OURS, str(folder / "policy"), output, pairs(256), **options, **case["options"])
        for name, keywords in case.get("callbacks", {}).items():
            callbacks = {"entanglement": EntanglementCallback, "consistency": WorkerConsistencyCallback}
            trainer.add_callback(callbacks[name](trainer=trainer, **keywords))
        traffic.take()
        trainer.train()
        counted[case["name"]] = traffic.take()
        release(trainer)
    if dist.get_rank() == 0:
        (folder / "traffic.json").write_text(json.dumps(counted))
    report_world()


if __name__ == "__main__":
    main()
