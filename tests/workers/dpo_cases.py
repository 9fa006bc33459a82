"""Run in each of two processes: train a list of DPO cases (JSON file in, results and parameters out)."""

import json
import sys
from pathlib import Path

import torch
import trl

import hf_gradkit
from launch import report_world
from pair_helpers import pairs, train_dpo
from workers.train_cases import result_of

CLASSES = {
    "trl": (trl.DPOTrainer, trl.DPOConfig),
    "ours": (hf_gradkit.DPOTrainer, hf_gradkit.DPOConfig),
    "trl reward": (trl.RewardTrainer, trl.RewardConfig),
    "reward": (hf_gradkit.RewardTrainer, hf_gradkit.RewardConfig),
}


def main() -> None:
    cases, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    for case in cases:
        data = pairs(case["rows"], *case["columns"])
        trainer = train_dpo(
            *CLASSES[case["trainer"]],
            str(folder / "policy"),
            folder / case["name"],
            data,
            resume=case.get("resume"),
            **case["options"],
        )
        result = result_of(trainer, folder / f"{case['name']}.pt")
        rank = torch.distributed.get_rank()
        (folder / f"{case['name']}.rank{rank}.json").write_text(json.dumps(result))
    report_world()


if __name__ == "__main__":
    main()
