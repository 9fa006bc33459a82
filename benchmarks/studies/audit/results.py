"""What the runs found, as the questions of the study ask for it."""

import json
from pathlib import Path
from typing import Any

Run = dict[str, Any]  # one arm of one seed, as short() returns it

UNDEFENDED = {
    "lora_rank_2": "lora",
    "lora_dropout": "lora",
    "full_weight_decay": "full",
    "full_duplicated": "full",
}
SAID = {"auc": "FLoRA AUC", "greedy": "greedy share", "held_out_loss": "held-out loss"}


def load(output: Path) -> dict[str, dict[str, list[Run]]]:
    """Return, by data and arm, what each seed's run found."""
    found: dict[str, dict[str, list[Run]]] = {}
    for path in sorted(output.glob("*/seed*/*.json")):
        run = short(json.loads(path.read_text()))
        found.setdefault(path.parent.parent.name, {}).setdefault(run["arm"], []).append(run)
    return found


def short(run: dict[str, Any]) -> Run:
    """Return the figures of a run that the questions are about."""
    membership, extraction = run["membership"], run["extraction"]
    epochs = [
        {
            "epoch": round(point["epoch"]),
            "auc": point["attacks"]["flora"]["auc"],
            "loss_auc": point["attacks"]["loss"]["auc"],
            "greedy": written["members"]["greedy"]["share"],
            "greedy_held_out": written["non_members"]["greedy"]["share"],
            "member_loss": point["utility"]["member_loss"],
            "held_out_loss": point["utility"]["held_out_loss"],
        }
        for point, written in zip(membership["epochs"], extraction["epochs"], strict=True)
    ]
    attacks = {
        name: {
            "auc": of["auc"],
            "tpr": of["tpr"]["0.01"]["tpr"],
            "exact": of["tpr"]["0.01"]["exact"],
            "above_flora": of["over"].get("flora"),
        }
        for name, of in membership["attacks"].items()
    }
    gate = {name: membership["gate"][name] for name in ("confounded", "noted")}
    gate["least_p"] = min(of["p"] for of in membership["gate"]["attacks"].values())
    base = {f"base_{name}": membership["utility"][f"reference_{name}"] for name in ("member_loss", "held_out_loss")}
    return {"arm": run["arm"], "seed": run["seed"], **base, "epochs": epochs, "attacks": attacks, "gate": gate}


def load_long(output: Path) -> dict[str, list[dict[str, Any]]]:
    """Return, by data, what the runs of memorising.py found: for each seed, shares by epoch."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((output / "long").glob("*.json")):
        run = json.loads(path.read_text())
        epochs = [
            {
                "epoch": round(point["epoch"]),
                "greedy": point["members"]["greedy"]["share"],
                "greedy_held_out": point["non_members"]["greedy"]["share"],
            }
            for point in run["extraction"]["epochs"]
        ]
        found.setdefault(path.name.partition("-")[0], []).append({"seed": run["seed"], "epochs": epochs})
    return found


def best_epoch(run: Run) -> dict[str, float]:
    """Return the epoch with the lowest held-out loss, where one would have stopped."""
    return min(run["epochs"], key=lambda point: point["held_out_loss"])


def differences(defended: list[Run], undefended: list[Run]) -> dict[str, list[float]]:
    """Return what a defence changed at each run's best epoch, by figure and seed."""
    before = {run["seed"]: best_epoch(run) for run in undefended}
    return {
        name: [best_epoch(run)[name] - before[run["seed"]][name] for run in defended if run["seed"] in before]
        for name in SAID
    }
