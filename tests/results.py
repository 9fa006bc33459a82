"""Runs a list of cases in two real processes, and reads what they wrote."""

import json
from pathlib import Path

import torch

from launch import launch


class Results:
    """What the two processes left behind.

    Args:
        worker: script in tests/workers that each process runs.
        folder: where it writes.
    """

    def __init__(self, worker: str, folder: Path):
        self.worker = Path(__file__).parent / "workers" / worker
        self.folder = folder

    def of(self, name: str, rank: int = 0) -> dict:
        return json.loads((self.folder / f"{name}.rank{rank}.json").read_text())

    def logs(self, name: str, key: str) -> list[float]:
        return [entry[key] for entry in self.of(name)["logs"] if key in entry and "loss" in entry]

    def parameters(self, name: str) -> dict[str, torch.Tensor]:
        return torch.load(self.folder / f"{name}.pt", weights_only=True)

    def gap(self, name: str, other: dict[str, torch.Tensor]) -> float:
        return max((value - other[key]).abs().max().item() for key, value in self.parameters(name).items())

    def run(self, cases: list[dict]) -> None:
        path = self.folder / "cases.json"
        path.write_text(json.dumps(cases))
        launched = launch(self.worker, [str(path), str(self.folder)])
        launched.assert_world("MULTI_CPU")
