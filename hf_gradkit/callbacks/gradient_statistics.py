"""GradientStatisticsCallback: norms of examples' gradients, outliers, the noise scale, and sources that conflict."""

import importlib.util
import logging
from collections import deque
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from .._text import check_whole_number
from ..gradients.statistics import (
    GroupSums,
    NoiseSums,
    OutlierRule,
    add_group_sums,
    group_cosines,
    group_sums,
)
from .gradient_monitor import GradientMonitor
from .step_examples import ExampleNames

logger = logging.getLogger(__name__)

NAMED_OUTLIERS = 10  # of one step, in the file


class GradientStatisticsCallback(GradientMonitor):
    """Watches the gradient of every example, on any trainer, off the backward pass that runs anyway.

        trainer.add_callback(GradientStatisticsCallback(trainer=trainer))

    Figures, over the examples of all ranks: `gradients/norm_mean`, `/norm_median`, `/norm_max` of an example's own
    loss (free of batch size, accumulation and ranks); `/outliers`, the share of examples whose norm is far beyond the
    recent ones'; `/noise_scale`, in examples: with batches much smaller than it, each further example still pays,
    with much larger ones it does not (arXiv 1812.06162); `/norm_test_batch`, the smallest batch that passes the norm
    test of adaptive batch sizes (arXiv 2402.11215), noise_scale / eta^2; with a `group_column`,
    `/cosine/<a>|<b>`, the cosine of two sources' mean gradients: below zero, what one teaches the other undoes.
    They go to `<output_dir>/gradient_statistics.jsonl`, with the outliers' ids, and to the log history; with
    `trainer` also to the trackers.

    The noise scale and the cosines are ratios of averages over the last `window` monitored steps, as products of
    examples of the same micro-batch are unbiased, and noisy. With one example a micro-batch the products come from
    random projections.

    Examples are named by the trainer's `example_id_column` or row number where the trainer is ours and has example
    columns, and else by a hash of their tokens, which `hf_gradkit.callbacks.step_examples.token_hash` gives for a row
    of yours.

    Args:
        monitor_steps: watch every so many optimizer steps.
        trainer: the trainer, for trackers, ids and groups.
        window: monitored steps that the noise scale and the cosines are averaged over.
        norm_test_eta: eta of the norm test; ours is 0.5, at which the gradient's error is at most half its length.
        pairs: whether batches are [chosen; rejected], two rows an example; None asks the trainer.
        projections: random probes, with one example a micro-batch.

    Raises:
        ValueError: for options out of their domain, or gradients that are scaled (fp16).
    """

    def __init__(
        self,
        monitor_steps: int = 1,
        trainer: Any = None,
        window: int = 20,
        norm_test_eta: float = 0.5,
        pairs: bool | None = None,
        projections: int = 256,
    ):
        super().__init__("gradient_statistics", monitor_steps, trainer)
        check_whole_number("window", window, 1)
        if not 0 < norm_test_eta <= 1:
            raise ValueError(f"`norm_test_eta` must be above 0 and at most 1, but it is {norm_test_eta!r}.")
        check_whole_number("projections", projections, 2)
        self.window, self.norm_test_eta, self.projections = window, norm_test_eta, projections
        self._pairs = pairs
        self._outlier = OutlierRule()
        self._names: ExampleNames | None = None
        self._forget()

    def _forget(self) -> None:
        self._noise: deque[NoiseSums] = deque(maxlen=self.window)
        self._groups: deque[GroupSums] = deque(maxlen=self.window)
        self._norms: deque[float] = deque(maxlen=512)
        self._batches: list[dict[str, Any]] = []

    def _check(self, args: Any, model: Any) -> None:
        self._forget()
        if self._pairs is None:
            self._pairs = has_pairs(self._trainer)

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        for line in self.figures.kept if state.global_step else []:  # a resumed run goes on with what it had
            self._remember(line["sums"], line["norms"])

    # ---- one step -----------------------------------------------------------------------------------------------

    def _needs(self, args: Any) -> dict[str, Any]:
        alone = args.per_device_train_batch_size == 1
        return {"mode": "gram", "projections": self.projections if alone else 0, "documents": True}

    def _watch(self, model: nn.Module) -> None:
        self._batches = []
        self._names = ExampleNames(model, self._trainer, self._pairs)
        self._stack.callback(self._names.close)

    def _take(self, args: Any) -> None:
        gram, sketch = self._recorder.gram(), None
        if self._recorder.sketch is not None:
            sketch = self._recorder.projections()
        if self._pairs:
            half = len(gram) // 2
            gram = gram[:half, :half] + gram[half:, half:] + gram[:half, half:] + gram[half:, :half]
            sketch = None if sketch is None else sketch[:half] + sketch[half:]
        ids, groups = self._names.of(len(self._batches), len(gram))
        self._batches.append({"gram": gram.cpu(), "sketch": sketch, "ids": ids, "groups": groups})

    def _report(self, args: Any, step: int, model: nn.Module) -> None:
        everybody = gather_object([self._of_this_rank()])
        self._batches = []
        examples = sum(part["noise"].examples for part in everybody)
        # What reaches the recorder is the ranks' number times the example's share of the mean over the step.
        scale = examples / len(everybody)
        noise = sum((part["noise"] for part in everybody), NoiseSums())
        if not noise.pairs and examples > 1 and all(part["sketch"] is not None for part in everybody):
            noise = _across(noise, everybody)
        sums = {
            "noise": [noise.squares * scale**2, noise.examples, noise.products * scale**2, noise.pairs],
            "groups": [
                [*key, value * scale**2, number]
                for key, (value, number) in add_group_sums(part["groups"] for part in everybody).items()
            ],
        }
        norms = torch.cat([part["norms"] for part in everybody]) * scale
        ids = [name for part in everybody for name in part["ids"]]
        rounded = [float(f"{value:.5g}") for value in norms.tolist()]
        self._remember(sums, rounded)  # as a resumed run does
        figures, outliers = self._figures(norms, ids, examples)
        self.figures.add(step, figures, {"outliers": outliers, "sums": sums, "norms": rounded})

    def _of_this_rank(self) -> dict[str, Any]:
        batches = self._batches
        sketches = [batch["sketch"] for batch in batches if batch["sketch"] is not None]
        return {
            "noise": sum((NoiseSums.of(batch["gram"]) for batch in batches), NoiseSums()),
            "groups": add_group_sums(
                group_sums(batch["gram"], batch["groups"]) for batch in batches if batch["groups"] is not None
            ),
            "norms": torch.cat([batch["gram"].diagonal().clamp(min=0).sqrt() for batch in batches]),
            "ids": [name for batch in batches for name in batch["ids"]],
            "sketch": torch.cat(sketches).cpu() if sketches else None,
        }

    def _remember(self, sums: dict[str, Any], norms: list[float]) -> None:
        self._noise.append(NoiseSums(*sums["noise"]))
        self._groups.append({(a, b): (value, number) for a, b, value, number in sums["groups"]})
        self._norms.extend(norms)

    def _figures(self, norms: Tensor, ids: list[str], examples: int) -> tuple[dict[str, float], list[list[Any]]]:
        """Return the figures of a step, and its outliers: id, norm, times the median."""
        median = norms.median()
        figures = {
            "gradients/norm_mean": float(norms.mean()),
            "gradients/norm_median": float(median),
            "gradients/norm_max": float(norms.max()),
            "gradients/batch": float(examples),
            "gradients/coverage": self._recorder.coverage,
        }
        outliers: list[list[Any]] = []
        threshold = self._outlier.threshold(torch.tensor(list(self._norms)))
        if threshold is not None:
            beyond = (norms > threshold).nonzero()[:, 0].tolist()
            figures["gradients/outliers"] = len(beyond) / examples
            beyond.sort(key=lambda i: -float(norms[i]))
            outliers = [
                [ids[i], float(norms[i]), float(norms[i] / median)] for i in beyond[:NAMED_OUTLIERS] if median > 0
            ]
        noise = sum(self._noise, NoiseSums()).noise_scale
        if noise is not None:
            figures["gradients/noise_scale"] = noise
            figures["gradients/norm_test_batch"] = noise / self.norm_test_eta**2
        for (a, b), cosine in group_cosines(add_group_sums(self._groups)).items():
            figures[f"gradients/cosine/{a}|{b}"] = cosine
        return figures, outliers

    def _end(self, args: Any) -> None:
        """Write the picture beside the figures, where matplotlib is installed."""
        if importlib.util.find_spec("matplotlib") is None:
            logger.warning('No picture of the gradients: matplotlib is missing (pip install "hf-gradkit[plots]").')
            return
        from ..reporting.gradient_statistics import gradient_figure
        from ..reporting.runs import Run

        folder = Path(args.output_dir)
        figure = gradient_figure([Run(folder.name, folder, [], {})])
        if figure is not None:
            figure.savefig(folder / "gradient_statistics.png", dpi=130)


def has_pairs(trainer: Any) -> bool:
    """Whether a trainer's batches are [chosen; rejected]."""
    import trl

    return isinstance(trainer, (trl.DPOTrainer, trl.RewardTrainer))


def _across(noise: NoiseSums, everybody: list[dict[str, Any]]) -> NoiseSums:
    """Return the sums with products between micro-batches and ranks, from projections."""
    rows = torch.cat([part["sketch"] for part in everybody]).double()
    products = float(rows.sum(0).square().sum() - rows.square().sum())
    return NoiseSums(noise.squares, noise.examples, products, len(rows) * (len(rows) - 1))
