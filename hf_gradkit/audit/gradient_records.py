"""Gradients of the examples' own losses under the target, through the scoring engine, for the attacks on them."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..data.private_files import make_private_folder
from ..scoring import TokenRow, TokenStatistics, fingerprints, load_scores, score_rows, token_statistics
from ..scoring.difficulty_scorers import recorded_norms
from ..scoring.language_models import check_rows
from ..scoring.processes import on_main
from ..scoring.sharding import is_split
from .attacks.gradient import ALL, ORDERS, GradientRecord
from .examples import token_hashes
from .models import TARGET, AuditedModel

LAYER = re.compile(r"\b(?:layers?|h|blocks?)\.(\d+)\.")


def part_of(name: str, embeddings: set[str]) -> str:
    """Return the part of the model that a parameter belongs to."""
    if name in embeddings:
        return "embeddings"
    found = LAYER.search(name)
    return f"layer {found.group(1)}" if found else "rest"


class NormScorer:
    """Gives the 2-norm of each parameter's gradient of each example's loss, a batch in one backward pass.

    Args:
        statistics: what `token_statistics` gives.
        recorder: of the model's gradients.
    """

    columns = ("loss", "norms")

    def __init__(self, statistics: Callable[[list[TokenRow]], TokenStatistics], recorder: Any):
        self._statistics, self._recorder = statistics, recorder

    def length(self, item: TokenRow) -> int:
        """Return the number of tokens."""
        return len(item)

    def score(self, items: list[TokenRow]) -> dict[str, np.ndarray]:
        """Return losses, (n,), and norms in the order of the parameters' names, (n, parameters)."""
        with torch.enable_grad():
            losses = self._statistics(items).losses()
            losses.sum().backward()
        norms = self._recorder.layer_norms()
        stacked = torch.stack([norms[name] for name in sorted(norms)], dim=1)
        return {"loss": losses.detach().cpu().numpy(), "norms": stacked.double().cpu().numpy()}


class StepScorer:
    """Gives all norms of each example's gradient, and its loss after one plain step on it; one example at a time.

    Args:
        statistics: what `token_statistics` gives.
        model: whose parameters are stepped, and restored exactly.
        eta: size of the step.

    Raises:
        ValueError: if weights are not float32, in which so small a step would be lost.
    """

    columns = ("loss", "stepped_loss", "norms")

    def __init__(self, statistics: Callable[[list[TokenRow]], TokenStatistics], model: nn.Module, eta: float):
        self._statistics, self.eta = statistics, eta
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        kinds = {str(p.dtype) for p in self._parameters.values()}
        if kinds != {"torch.float32"}:
            raise ValueError(
                f"The model's weights are {', '.join(sorted(kinds))}, in which a step of {eta} is lost to rounding. "
                "Load them with dtype='float32' for the attack 'step_ratio' and norms of order 1 and inf."
            )

    def length(self, item: TokenRow) -> int:
        """Return the number of tokens."""
        return len(item)

    def score(self, items: list[TokenRow]) -> dict[str, np.ndarray]:
        """Return both losses, (n,), and norms by parameter and order, (n, parameters * 3)."""
        found = [self._score(item) for item in items]
        return {name: np.stack([of[name] for of in found]) for name in self.columns}

    def _score(self, item: TokenRow) -> dict[str, np.ndarray]:
        parameters = list(self._parameters.values())
        with torch.enable_grad():
            loss = self._statistics([item]).losses()[0]
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        before = [p.detach().clone() for p in parameters]
        try:
            with torch.no_grad():
                for p, g in zip(parameters, gradients, strict=True):
                    if g is not None:
                        p.sub_(g, alpha=self.eta)
                stepped = self._statistics([item]).losses()[0]
        finally:
            with torch.no_grad():
                for p, value in zip(parameters, before, strict=True):
                    p.copy_(value)
        norms = {name: _orders(g) for name, g in zip(self._parameters, gradients, strict=True)}
        flat = np.concatenate([norms[name] for name in sorted(norms)])
        return {"loss": loss.detach().cpu().numpy(), "stepped_loss": stepped.cpu().numpy(), "norms": flat}


def _orders(gradient: torch.Tensor | None) -> np.ndarray:
    """Return the norms of order 1, 2 and inf of a gradient. (3,)"""
    if gradient is None:
        return np.zeros(len(ORDERS))
    g = gradient.double()
    return np.array([g.abs().sum().item(), g.norm().item(), g.abs().max().item()])


def score_gradients(
    models: AuditedModel, rows: list[TokenRow], cache_folder: str | os.PathLike, batch_size: int, eta: float | None
) -> tuple[list[GradientRecord], np.ndarray]:
    """Return what the attacks on gradients look at, and features for supervised ones, scored now or before.

    Args:
        models: what is audited; of an adapter, the gradients are those of the adapter.
        rows: examples.
        cache_folder: where figures are kept.
        batch_size: examples in a batch of one process.
        eta: step of `StepScorer`, or None where 2-norms are enough.

    Returns:
        A record an example, and logarithms of the 2-norms of each parameter's gradient. (N, parameters)
    """
    key = fingerprints.digest("gradients", 1, models.content(TARGET), token_hashes(rows), eta)
    folder = Path(cache_folder) / key
    columns = NormScorer.columns if eta is None else StepScorer.columns
    names, parts, kept = None, None, None
    for _, model in models.open((TARGET,), trainable=True):
        check_rows(rows, model)
        on_main(lambda: make_private_folder(folder))
        table = model.get_input_embeddings().weight
        embeddings = {name for name, p in model.named_parameters() if p is table}
        with token_statistics(model) as statistics:
            kept = load_scores(folder, key, columns, len(rows))
            if eta is None:
                with recorded_norms(model) as recorder:
                    names = sorted(name for name, p in model.named_parameters() if p.requires_grad)
                    if kept is None:
                        scorer = NormScorer(statistics, recorder)
                        split = is_split(model)
                        kept = score_rows(rows, scorer, folder, key, batch_size, unit="example", in_step=split).columns
            else:
                names = sorted(name for name, p in model.named_parameters() if p.requires_grad)
                if kept is None:
                    scorer = StepScorer(statistics, model, eta)
                    kept = score_rows(rows, scorer, folder, key, batch_size, unit="example").columns
        parts = [part_of(name, embeddings) for name in names]
    return _records(kept, parts, eta is not None)


def _records(kept: dict[str, np.ndarray], parts: list[str], every: bool) -> tuple[list[GradientRecord], np.ndarray]:
    norms = kept["norms"].reshape(len(kept["loss"]), len(parts), -1)  # (N, parameters, orders)
    two = norms[:, :, 1] if every else norms[:, :, 0]
    records = []
    for i, loss in enumerate(kept["loss"]):
        by_part = {}
        for part in (ALL, *dict.fromkeys(parts)):
            mine = [j for j, of in enumerate(parts) if part in (ALL, of)]
            found = {"2": float(np.sqrt(np.square(two[i, mine]).sum()))}
            if every:
                found |= {"1": float(norms[i, mine, 0].sum()), "inf": float(norms[i, mine, 2].max())}
            by_part[part] = found
        stepped = float(kept["stepped_loss"][i]) if every else float("nan")
        records.append(GradientRecord(by_part, float(loss), stepped))
    return records, np.log(np.maximum(two, 1e-30))
