"""How much single examples' gradients vary within a worker, where a step has one micro-batch."""

import logging
from contextlib import ExitStack
from typing import Any

from torch import nn

from .._text import listing
from ..gradients.errors import GradientRecordError
from ..gradients.sharing import shared_recorder

logger = logging.getLogger(__name__)

NOISE_STEPS = 4  # of those that are watched, one in which single examples are looked at


class SingleExamples:
    """Records single examples' gradients in every fourth step that is watched, for how much they vary.

    Args:
        model: as callbacks get it.
        pairs: whether batches are [chosen; rejected], two rows an example.
        compiled: whether torch.compile is at work: each change of the layers' forwards would compile them anew, and
            after some it gives up. Nothing is recorded then.
    """

    def __init__(self, model: nn.Module, pairs: bool, compiled: bool = False):
        self._model, self._pairs, self._compiled = model, pairs, compiled
        self._stack = ExitStack()
        self._recorder: Any = None
        self._watched = 0
        self._warned = False

    def begin(self) -> None:
        """Begin a step."""
        if self._watched % NOISE_STEPS == 0 and not self._compiled:
            mode = "pairs" if self._pairs else "norms"
            self._recorder = self._stack.enter_context(
                shared_recorder(self._model, mode, documents=True, lenient=True)
            )
        self._watched += 1

    def mean_square(self) -> float:
        """Return the mean squared norm of an example's gradient in the backward pass that was, or NaN."""
        if self._compiled:
            self._say("The model is compiled, and single examples cannot be told in a compiled graph.")
        if self._recorder is None:
            return float("nan")
        try:
            if self._recorder.refused:
                raise GradientRecordError(self._recorder.refused)
            if self._recorder.uncovered:
                raise GradientRecordError(f"{listing(self._recorder.uncovered)} cannot be recorded by example.")
            squares = self._recorder.norms().square()
            if self._pairs:
                squares = squares.view(2, -1).sum(0) + 2 * self._recorder.pair_products()
        except GradientRecordError as error:
            self._say(str(error))
            return float("nan")
        return float(squares.mean())

    def close(self) -> None:
        """End the step."""
        self._stack.close()
        self._recorder = None

    def _say(self, why: str) -> None:
        if not self._warned:
            logger.warning(
                f"How far the workers' gradients should agree in direction is unknown in this step. {why} With "
                "two micro-batches a step or more it is taken from these."
            )
        self._warned = True
