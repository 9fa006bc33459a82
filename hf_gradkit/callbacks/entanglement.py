"""EntanglementCallback: why chosen and rejected log-probabilities rise or fall together, while training runs."""

import importlib.util
import logging
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from .._text import check_whole_number
from ..gradients.errors import GradientRecordError
from .gradient_monitor import GradientMonitor, close_all
from .observation import ForwardWatch
from .watched_pairs import WatchedPairs, figures_of

logger = logging.getLogger(__name__)

DIRECTIONS = ("pair", "step")


class EntanglementCallback(GradientMonitor):
    """Watches preference training for gradient entanglement (arXiv 2410.13828, ICLR 2025).

    For every pair of the monitored steps it reads, off the backward pass that runs anyway, the gradients that flow
    through the chosen and through the rejected answer, and says what one small step does to their log-probabilities:
    as meant (`ideal`), both falling, or both rising. Works on our trainers, on TRL's unchanged, and on any whose batch
    is [chosen; rejected] and whose model is called through TRL's fused head.

        trainer.add_callback(EntanglementCallback())

    Figures, means over the pairs of all ranks: `entanglement/cosine`, `/norm_ratio`, `/chosen_norm`, `/rejected_norm`
    (of a pair's own loss: free of batch size, accumulation and ranks), the shares `/chosen_rises`, `/rejected_falls`,
    `/ideal`, `/both_fall`, `/both_rise`, `/inverted`, `/inactive`, and `/coverage` of the parameters. They go to
    `<output_dir>/entanglement.jsonl`, with every pair's cosine and ratio, and to the log history; with `trainer` also
    to the trackers.

    With `direction="step"` the shares are about the step of the whole batch. Its products are exact within a
    micro-batch; those with other micro-batches and ranks are estimated from projections: `/step_error` is their
    standard error in units of the cosine of an answer's gradient with the step, `/uncertain` the share of pairs of
    which a sign is within two standard errors.

    With `observe` the batch goes forward once more after the step: `/observed_chosen_rises`,
    `/observed_rejected_falls`, and `/agreement`, the share of answers that went where the prediction said. The
    prediction is for a plain gradient step; Adam's step is preconditioned and can differ.

    Args:
        monitor_steps: watch every so many optimizer steps.
        direction: "pair" for the step that a pair alone would make, "step" for that of the whole batch.
        trainer: the trainer, so that trackers get the figures as well.
        observe: check the prediction after each monitored step, at the price of one more forward.
        projections: random probes for `direction="step"` over several micro-batches or ranks.

    Raises:
        ValueError: for options out of their domain, or training options under which a row has more than one
            coefficient (`ld_alpha`, an auxiliary loss of experts) or gradients are scaled (fp16).
        GradientRecordError: if the batch is not pairs, or the model does not run through TRL's fused head.
    """

    def __init__(
        self,
        monitor_steps: int = 1,
        direction: str = "pair",
        trainer: Any = None,
        observe: bool = False,
        projections: int = 256,
    ):
        super().__init__("entanglement", monitor_steps, trainer)
        if direction not in DIRECTIONS:
            raise ValueError(f"`direction` must be 'pair' or 'step', but it is {direction!r}.")
        check_whole_number("projections", projections, 2)
        self.direction, self.observe, self.projections = direction, observe, projections
        self._forwards: ForwardWatch | None = None
        self._batches: list[WatchedPairs] = []
        self._warned = False

    def _check(self, args: Any, model: Any) -> None:
        if getattr(args, "ld_alpha", None) is not None:
            raise ValueError(
                f"`ld_alpha` is {args.ld_alpha}, which weighs the tokens of an answer differently, and the "
                "entanglement monitor needs one coefficient an answer. Unset `ld_alpha`, or leave the monitor out."
            )
        config = getattr(model, "config", None)
        config = config.get_text_config() if hasattr(config, "get_text_config") else config
        coefficient = getattr(args, "router_aux_loss_coef", None)
        coefficient = getattr(config, "router_aux_loss_coef", 0.0) if coefficient is None else coefficient
        if hasattr(config, "output_router_logits") and coefficient:
            raise ValueError(
                f"`router_aux_loss_coef` is {coefficient}: the auxiliary loss of a mixture of experts adds gradients "
                "that belong to neither answer. Set it to 0.0, or leave the entanglement monitor out."
            )

    # ---- one step -----------------------------------------------------------------------------------------------

    def _is_part(self, args: Any) -> bool:
        """Whether a micro-batch is only a part of the step whose direction is asked for."""
        return self.direction == "step" and args.gradient_accumulation_steps * args.world_size > 1

    def _needs(self, args: Any) -> dict[str, Any]:
        mode = "gram" if self.direction == "step" else "pairs"
        return {"mode": mode, "projections": self.projections if self._is_part(args) else 0}

    def _watch(self, model: nn.Module) -> None:
        self._batches = []
        self._forwards = ForwardWatch(model, self.observe, partial(self._complain, model))
        self._stack.callback(self._forwards.close)

    def _complain(self, model: nn.Module) -> None:
        close_all(model)
        raise GradientRecordError(
            "The model's output has no `log_probs` with a gradient, which tell the sign of each answer's pull. The "
            "entanglement monitor needs a trainer that uses TRL's fused head, such as DPOTrainer."
        )

    def _take(self, args: Any) -> None:
        gradient, self._forwards.gradient = self._forwards.gradient, None
        if gradient is None:
            raise GradientRecordError(
                "The loss does not depend on the `log_probs` of the model's output, so there are no pairs to watch."
            )
        step, part = self.direction == "step", self._is_part(args)
        self._batches.append(WatchedPairs.of(self._recorder, gradient, step, part))

    def _report(self, args: Any, step: int, model: nn.Module) -> None:
        for batch, forward in zip(self._batches, self._forwards.forwards, strict=False):
            batch.changes = forward.changes(model)
        for batch in self._batches:  # the last step of an epoch may have fewer of them than the others
            batch.scale *= len(self._batches)
        figures, pairs = figures_of(self._batches)
        self._batches = []
        self.figures.add(step, {"entanglement/coverage": self._recorder.coverage, **figures}, {"pairs": pairs})
        self._warn(figures)

    def _warn(self, figures: dict[str, float]) -> None:
        if self._warned or figures.get("entanglement/both_fall", 0.0) <= 0.5:
            return
        self._warned = True
        logger.warning(
            f"For {figures['entanglement/both_fall']:.0%} of the pairs the chosen log-probability falls together with "
            "the rejected one: their gradients are entangled (entanglement/* in the logs). A pull on the chosen "
            "answer holds it up (loss_type=['rpo'], or 'sft' beside the loss), as do pulls of equal length "
            "(gradient_balancing='batch') and a loss of length-normalised log-probabilities ('sigmoid_norm') where "
            "rejected answers are the longer ones. Weights of pairs do not."
        )

    def _end(self, args: Any) -> None:
        """Write the picture beside the figures, where matplotlib is installed."""
        if importlib.util.find_spec("matplotlib") is None:
            logger.warning('No picture of the entanglement: matplotlib is missing (pip install "hf-gradkit[plots]").')
            return
        from ..reporting.entanglement import entanglement_figure
        from ..reporting.runs import Run

        folder = Path(args.output_dir)
        figure = entanglement_figure([Run(folder.name, folder, [], {})])
        if figure is not None:
            figure.savefig(folder / "entanglement.png", dpi=130)
