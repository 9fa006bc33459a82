"""Runs a list of cases in two real processes, and reads what they wrote."""

import json
from pathlib import Path

import torch

from launch import BACKENDS, launch


class Results:
    """What the two processes left behind.

    Args:
        worker: script in tests/workers that each process runs.
        folder: where it writes.
        backend: a configuration of accelerate_configs/cpu/.
    """

    def __init__(self, worker: str, folder: Path, backend: str = "multi_gpu"):
        self.worker = Path(__file__).parent / "workers" / worker
        self.folder = folder
        self.backend = backend

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
        launched = launch(self.worker, [str(path), str(self.folder)], config=f"cpu/{self.backend}", timeout=500)
        launched.assert_command(self.backend, BACKENDS[self.backend]["distributed_type"])
        if "wrapper" in launched.worlds[0]:  # the worker handed a trainer to `report_world`
            launched.assert_backend(self.backend)
