"""What watching costs, measured in the demo itself: one training whose steps are watched in turn, yes and no."""

import statistics
import time

from transformers import TrainerCallback

WARM_UP = 3  # steps that are left out: the first ones fill caches


class Clock(TrainerCallback):
    """Times whole optimizer steps, from the end of one to the end of the next.

    To be added after the monitor, so that what the monitor does at the end of a step is in that step's time.
    """

    def __init__(self):
        self.times: list[float] = []
        self._last: float | None = None

    def on_step_end(self, args, state, control, **kwargs):
        now = time.perf_counter()
        if self._last is not None:
            self.times.append(now - self._last)
        self._last = now


def cost_ratios(times: list[float]) -> tuple[list[float], list[float]]:
    """Return each watched step's time by the mean of the plain ones beside it, and the same of plain steps: the noise.

    Args:
        times: of the steps, A B A B ... with the plain steps A first; seconds.

    >>> cost_ratios([1.0, 1.5, 1.0, 3.0, 2.0])
    ([1.5, 2.0], [0.6666666666666666])
    """

    def ratios(first: int, distance: int) -> list[float]:
        middles = range(first, len(times) - distance, 2)
        return [2 * times[i] / (times[i - distance] + times[i + distance]) for i in middles]

    return ratios(1, 1), ratios(2, 2)


def cost_in_words(times: list[float]) -> str:
    """Return the median ratio with its quartiles, and the noise in the same words."""
    watched, plain = cost_ratios(times)
    first, median, third = statistics.quantiles(watched, n=4)
    low, _, high = statistics.quantiles(plain, n=4)
    return (
        f"{median:.2f} times a plain step (half of {len(watched)} ratios between {first:.2f} and {third:.2f}; plain "
        f"steps against each other, the noise: {low:.2f} to {high:.2f})"
    )
