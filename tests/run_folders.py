"""Output folders as trainings leave them, with logs written by hand: what pages are made from."""

import json
from pathlib import Path
from typing import Any

from hf_gradkit.data.tiny import tiny_llama

VERSIONS = {"hf-gradkit": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "trl": "1.16.0", "peft": None}

# A DPO run's logs: two training logs, of which one is of monitored pairs, and an evaluation after each.
HISTORY = [
    {
        "step": 1,
        "loss": 0.69,
        "grad_norm": 1.0,
        "rewards/margins": 0.0,
        "rewards/chosen": 0.0,
        "rewards/rejected": 0.0,
        "rewards/accuracies": 0.5,
        "entanglement/ideal": 0.25,
        "entanglement/both_fall": 0.5,
        "entanglement/both_rise": 0.25,
    },
    {"step": 1, "eval_loss": 0.5, "eval_rewards/accuracies": 0.75, "eval_runtime": 3.0},
    {
        "step": 2,
        "loss": 0.6,
        "grad_norm": 1.0,
        "rewards/margins": 0.1,
        "rewards/chosen": 0.0,
        "rewards/rejected": -0.1,
        "rewards/accuracies": 0.625,
        "logps/chosen_drift": -1.5,
        "logps/rejected_drift": -2.5,
        "entanglement/ideal": 0.75,
        "entanglement/both_fall": 0.25,
        "entanglement/both_rise": 0.0,
        "consistency/loss_dispersion_ratio": 1.25,
        "consistency/direction_ratio": 0.5,
        "consistency/repeated": 3,
    },
    {"step": 2, "eval_loss": 0.625, "eval_rewards/accuracies": 0.875, "eval_logps/chosen": -9.0, "eval_runtime": 3.0},
    {"step": 2, "train_runtime": 5.0, "train_loss": 0.65},
]


def run_info(**changes: Any) -> dict[str, Any]:
    """Return what `gradkit_run.json` says of a DPO run with MADPO and RPO, with changes."""
    return {
        "format": 1,
        "trainer": "DPOTrainer",
        "model": "Qwen/Qwen3-0.6B",
        "base_model": "Qwen/Qwen3-0.6B",
        "base_model_is_local": False,
        "model_revision": "c" * 40,
        "weighting": "madpo",
        "loss_type": ["rpo"],
        "margin_temperature": 1.5,
        "settings": {
            "output_dir": "/home/someone/secret/place",
            "learning_rate": 5e-7,
            "beta": 0.1,
            "weighting": "madpo",
            "weighting_kwargs": {"c_max": 3.0},
            "loss_type": ["rpo"],
            "loss_kwargs": {"rpo": {"normalization": "average"}},
        },
        "rows": 512,
        "command": "gradkit dpo --config dpo.yaml --hub_token ...",
        "config": {"model_name_or_path": "Qwen/Qwen3-0.6B", "beta": 0.1},
        "data": [
            {"name": "trl-lib/ultrafeedback_binarized", "role": "train", "split": "train", "revision": "d" * 40},
            {"name": "trl-lib/ultrafeedback_binarized", "role": "eval", "split": "test"},
        ],
        "processes": 2,
        "distributed_type": "MULTI_GPU",
        "versions": VERSIONS,
        **changes,
    }


def write_run(folder: Path, tokenizer: Any, info: dict[str, Any] | None = None, **state: Any) -> Path:
    """Write the folder of a run: a tiny Llama with its tokenizer, logs and `gradkit_run.json` unless it is {}."""
    tiny_llama(tokenizer, hidden_size=32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    content = {"global_step": 2, "max_steps": 2, "epoch": 1.0, "log_history": HISTORY, **state}
    (folder / "trainer_state.json").write_text(json.dumps(content))
    info = run_info() if info is None else info
    if info:
        (folder / "gradkit_run.json").write_text(json.dumps(info))
    return folder


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder with its content, to see that nothing was lost or changed."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
