"""Scores of single SFT examples, arXiv 2107.07075: loss and EL2N from a forward pass, GraNd from a backward pass."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from .._text import listing
from ..gradients import GradientRecordError, Recorder, record_gradients
from .token_rows import TokenRow
from .tokens import TokenStatistics

OUTPUTS = ("log_probs", "log_sum_sq_probs", "is_top1")  # per-token figures that the scores are made of
TRAINABLE = "trainable"


class ForwardScorer:
    """Scores examples by one forward pass, for `score_rows`.

    - `loss`: mean cross-entropy over the label tokens, in nats;
    - `el2n`: mean over the label tokens of ||p - onehot(label)||;
    - `token_accuracy`: share of the label tokens that are the likeliest ones.

    Args:
        statistics: what `token_statistics` gives for `OUTPUTS`.
    """

    columns: tuple[str, ...] = ("loss", "el2n", "token_accuracy")

    def __init__(self, statistics: Callable[[list[TokenRow]], TokenStatistics]):
        self._statistics = statistics

    def length(self, item: TokenRow) -> int:
        """Return the number of tokens."""
        return len(item)

    @torch.inference_mode()
    def score(self, items: list[TokenRow]) -> dict[str, np.ndarray]:
        """Return the scores of each example. (n,) float64 each"""
        return self._figures(self._statistics(items))

    def _figures(self, found: TokenStatistics) -> dict[str, np.ndarray]:
        return {
            "loss": _numbers(found.losses()),
            "el2n": _numbers(found.mean(found.el2n())),
            "token_accuracy": _numbers(found.mean(found.is_top1)),
        }


class GradientScorer(ForwardScorer):
    """Scores examples by a forward and a backward pass for a whole batch: `grand` besides, the norm of the gradient of
    each example's own mean loss.

    Args:
        statistics: as for `ForwardScorer`.
        recorder: of the model's gradients, recording in mode "norms".
    """

    columns = (*ForwardScorer.columns, "grand")

    def __init__(self, statistics: Callable[[list[TokenRow]], TokenStatistics], recorder: Recorder):
        super().__init__(statistics)
        self._recorder = recorder

    def score(self, items: list[TokenRow]) -> dict[str, np.ndarray]:
        """Return the scores of each example. (n,) float64 each

        Raises:
            ValueError: if gradients cannot be told apart by example or are not finite, naming rows of the data.
        """
        with torch.enable_grad():
            found = self._statistics(items)
            losses = found.losses()
            figures = self._figures(found)
            if not losses.isfinite().all():  # `score_rows` names the rows
                return {**figures, "grand": np.zeros(len(items))}
            try:
                # The sum of the examples' own means: each gradient is free of the rest of the batch.
                losses.sum().backward()
                norms = self._recorder.norms()
            except GradientRecordError as error:
                rows = [item.row for item in items]
                raise ValueError(f"The rows {rows} of the data were scored together: {error}") from error
        return {**figures, "grand": _numbers(norms)}


def _numbers(values: Tensor) -> np.ndarray:
    return values.detach().float().cpu().numpy().astype(np.float64)


def chosen_names(model: nn.Module, parameters: str) -> list[str]:
    """Return the names of the trainable parameters that a pattern chooses.

    Args:
        model: whose parameters.
        parameters: "trainable" for all that require a gradient, or a regular expression found in their names.

    Raises:
        ValueError: if it chooses none.
    """
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not names:
        raise ValueError("No parameter of the model requires a gradient, so GraNd has nothing to take a norm of.")
    if parameters == TRAINABLE:
        return names
    chosen = [name for name in names if re.search(parameters, name)]
    if not chosen:
        shown = names if len(names) <= 8 else [*names[:4], "...", *names[-4:]]
        raise ValueError(
            f"`parameters` is {parameters!r}, which is found in no name of a trainable parameter. Their names: "
            f"{listing(shown)}."
        )
    return chosen


@contextmanager
def recorded_norms(
    model: nn.Module, parameters: str = TRAINABLE, exact: bool = True, projections: int = 0, seed: int = 0
) -> Iterator[Recorder]:
    """Record the norms of the examples' gradients, and keep no gradient: each is let go as soon as it is there.

    Args:
        model: whose parameters.
        parameters: as for `chosen_names`; the others need no gradient meanwhile, which saves time.
        exact: refuse parameters of which nothing can be recorded; False leaves them out of the norm.
        projections, seed: of the gradients, besides their norms; as for `record_gradients`.

    Raises:
        ValueError: if nothing, or not all of it with `exact`, can be recorded.
    """
    chosen = set(chosen_names(model, parameters))
    held = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    hooks = []
    try:
        for name, parameter in model.named_parameters():
            parameter.grad = None
            if name not in chosen:
                parameter.requires_grad_(False)
            elif parameter.requires_grad:
                hooks.append(parameter.register_post_accumulate_grad_hook(_let_go))
        try:
            with record_gradients(model, mode="norms", projections=projections, seed=seed) as recorder:
                if exact and recorder.uncovered:
                    raise ValueError(_incomplete(recorder))
                yield recorder
        except GradientRecordError as error:  # such as a compiled model
            raise ValueError(str(error)) from error
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, required, gradient in held:
            if parameter.is_floating_point():
                parameter.requires_grad_(required)
            parameter.grad = gradient


def _let_go(parameter: Tensor) -> None:
    parameter.grad = None


def _incomplete(recorder: Recorder) -> str:
    names = recorder.uncovered
    return (
        f"GraNd is the norm of the whole gradient, but the gradients of {len(names)} parameters cannot be recorded "
        f"example by example ({1 - recorder.coverage:.1%} of their entries): {listing(names[:4])}"
        f"{', ...' if len(names) > 4 else ''}. Choose others with `parameters`, a regular expression found in their "
        "names, or set `exact` to false for the norm over the rest."
    )
