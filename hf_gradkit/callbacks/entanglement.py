"""EntanglementCallback: why chosen and rejected log-probabilities rise or fall together, while training runs."""

import importlib.util
import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather, pad_across_processes
from torch import Tensor
from transformers import TrainerCallback

from .._backends import backend, check_backend
from ..gradients import GradientRecordError, record_gradients
from ..gradients.entanglement import Entanglement
from .figures_log import FiguresLog

logger = logging.getLogger(__name__)

DIRECTIONS = ("pair", "step")
SPREAD = 1e-3  # of the coefficients of one row's tokens, beyond which they are not one coefficient


class EntanglementCallback(TrainerCallback):
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

    The prediction is for a plain gradient step; Adam's step is preconditioned and can differ.

    Args:
        monitor_steps: watch every so many optimizer steps.
        direction: "pair" for the step that a pair alone would make, "step" for that of the whole batch (one process
            without accumulation).
        trainer: the trainer, so that trackers get the figures as well.

    Raises:
        ValueError: for options out of their domain, or training options under which a row has more than one
            coefficient (`ld_alpha`, an auxiliary loss of experts) or gradients are scaled (fp16).
        GradientRecordError: if the batch is not pairs, or the model does not run through TRL's fused head.
    """

    def __init__(self, monitor_steps: int = 1, direction: str = "pair", trainer: Any = None):
        if isinstance(monitor_steps, bool) or not isinstance(monitor_steps, int) or monitor_steps < 1:
            raise ValueError(f"`monitor_steps` must be a whole number of at least 1, but it is {monitor_steps!r}.")
        if direction not in DIRECTIONS:
            raise ValueError(f"`direction` must be 'pair' or 'step', but it is {direction!r}.")
        self.monitor_steps, self.direction = monitor_steps, direction
        self.figures = FiguresLog("entanglement", trainer)
        self._stack = ExitStack()
        self._recorder: Any = None
        self._coefficients: Tensor | None = None
        self._tables: list[Tensor] = []
        self._warned = False

    # ---- the run ------------------------------------------------------------------------------------------------

    def on_train_begin(self, args, state, control, **kwargs):
        self._close()  # a run that was interrupted may have left something
        _check(args, kwargs.get("model"))
        if self.direction == "step" and (args.gradient_accumulation_steps > 1 or args.world_size > 1):
            raise ValueError(
                f"direction='step' needs the products of all rows of a step, and with gradient_accumulation_steps="
                f"{args.gradient_accumulation_steps} on {args.world_size} process(es) no backward pass has them. Use "
                "direction='pair'."
            )
        self.figures.start(args.output_dir, state.global_step, state.is_world_process_zero)

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self._close()
        if state.global_step % self.monitor_steps == 0:
            mode = "gram" if self.direction == "step" else "pairs"
            self._recorder = self._stack.enter_context(record_gradients(model, mode=mode))
            hook = model.register_forward_hook(self._see_output)
            self._stack.callback(hook.remove)

    def on_substep_end(self, args, state, control, **kwargs):
        self._read(args)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self._read(args)

    def on_step_end(self, args, state, control, **kwargs):
        coverage = self._recorder.coverage if self._recorder is not None else None
        self._close()
        if self._tables:
            self._report(state.global_step, coverage)

    def on_log(self, args, state, control, **kwargs):
        self.figures.after_log(state.log_history)

    def on_train_end(self, args, state, control, **kwargs):
        self._close()
        if state.is_world_process_zero:
            _draw(args.output_dir)

    def _close(self) -> None:
        self._stack.close()
        self._recorder = self._coefficients = None

    # ---- one micro-batch ----------------------------------------------------------------------------------------

    def _see_output(self, module: Any, positional: tuple, output: Any) -> None:
        log_probs = output.get("log_probs") if hasattr(output, "get") else None
        if not torch.is_grad_enabled():
            return
        if log_probs is None or not log_probs.requires_grad:
            self._close()
            raise GradientRecordError(
                "The model's output has no `log_probs` with a gradient, which tell the sign of each answer's pull. "
                "The entanglement monitor needs a trainer that uses TRL's fused head, such as DPOTrainer."
            )
        self._coefficients = None
        log_probs.register_hook(self._see_coefficients)

    def _see_coefficients(self, gradient: Tensor) -> None:
        self._coefficients = gradient.detach()

    def _read(self, args: Any) -> None:
        """Take in the micro-batch that was just backpropagated."""
        if self._recorder is None:
            return
        try:
            self._tables.append(self._table_of_batch(args))
        except BaseException:
            self._close()  # the layers' own forwards come back, whatever happened
            raise
        self._coefficients = None

    def _table_of_batch(self, args: Any) -> Tensor:
        """Return a row of `COLUMNS` for each pair of the micro-batch. (n, k)"""
        if self._coefficients is None:
            raise GradientRecordError(
                "The loss does not depend on the `log_probs` of the model's output, so there are no pairs to watch."
            )
        coefficients = _row_coefficients(self._coefficients)
        rows = len(coefficients)
        if rows % 2:
            raise GradientRecordError(
                f"The batch has {rows} rows, an odd number. Pairs are the chosen answers and after them the rejected."
            )
        half = rows // 2
        squares, products = self._recorder.norms().square(), self._recorder.pair_products()
        along = (None, None)
        if self.direction == "step":
            along = self._recorder.gram().sum(1).split(half)
        signs = coefficients.sign().to(squares)
        effect = Entanglement(squares[:half], squares[half:], products, signs[:half], signs[half:], *along)
        # The mean over the micro-batch and the accumulation divide each pair's own loss.
        scale = half * args.gradient_accumulation_steps
        return _table(effect, scale)

    def _report(self, step: int, coverage: float | None) -> None:
        table = torch.cat(self._tables)
        self._tables = []
        # On every rank: a marked row a pair, padded to the same number, so that the gather is a plain one.
        marked = torch.cat([table.new_ones(len(table), 1), table], dim=1)
        everything = gather(pad_across_processes(marked, dim=0, pad_index=0)).cpu()
        table = everything[everything[:, 0] == 1, 1:]
        active = table[:, COLUMNS.index("inactive")] == 0
        figures = {"entanglement/coverage": coverage}
        for i, name in enumerate(COLUMNS):
            of = table[active, i] if name in MEASURES else table[:, i]
            of = of[of.isfinite()]
            if len(of):
                figures[f"entanglement/{name}"] = float(of.mean())
        pairs = [[round(value, 6) for value in row] for row in table[active][:, :2].tolist()]
        self.figures.add(step, figures, {"pairs": pairs})
        self._warn(figures)

    def _warn(self, figures: dict[str, float]) -> None:
        if self._warned or figures.get("entanglement/both_fall", 0.0) <= 0.5:
            return
        self._warned = True
        logger.warning(
            f"For {figures['entanglement/both_fall']:.0%} of the pairs the chosen log-probability falls together with "
            "the rejected one: their gradients are entangled (entanglement/* in the logs). A pull on the chosen "
            "answer holds it up (loss_type=['rpo'], or 'sft' beside the loss), as does a loss of length-normalised "
            "log-probabilities ('sigmoid_norm') where rejected answers are the longer ones. Weights of pairs do not."
        )


def _draw(output_dir: str) -> None:
    """Write the picture beside the figures, where matplotlib is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        logger.warning('No picture of the entanglement: matplotlib is missing (pip install "hf-gradkit[plots]").')
        return
    from ..reporting.entanglement import entanglement_figure
    from ..reporting.runs import Run

    folder = Path(output_dir)
    figure = entanglement_figure([Run(folder.name, folder, [], {})])
    if figure is not None:
        figure.savefig(folder / "entanglement.png", dpi=130)


MEASURES = ("cosine", "norm_ratio", "chosen_norm", "rejected_norm")
COLUMNS = (
    *MEASURES,
    "chosen_rises",
    "rejected_falls",
    "ideal",
    "both_fall",
    "both_rise",
    "inverted",
    "inactive",
)


def _table(effect: Entanglement, scale: float) -> Tensor:
    """Return a row of `COLUMNS` for each pair. (n, k)"""
    outcomes = effect.outcomes()
    values = {
        "cosine": effect.cosine,
        "norm_ratio": effect.norm_ratio,
        "chosen_norm": scale * effect.chosen_square.sqrt(),
        "rejected_norm": scale * effect.rejected_square.sqrt(),
        **{name: value.to(effect.product) for name, value in outcomes.items()},
    }
    return torch.stack([values[name] for name in COLUMNS], dim=1)


def _row_coefficients(gradient: Tensor) -> Tensor:
    """Return the one number by which the loss depends on each row's log-probability. (r, t) -> (r,)

    Raises:
        GradientRecordError: if the tokens of a row have different ones.
    """
    largest = gradient.abs().max(dim=1)
    coefficient = gradient.gather(1, largest.indices[:, None])[:, 0]
    there = gradient != 0
    spread = ((gradient - coefficient[:, None]).abs() * there).max(dim=1).values
    bad = (spread > SPREAD * largest.values).nonzero()[:, 0].tolist()
    if bad:
        raise GradientRecordError(
            f"The tokens of row(s) {bad[:10]} have different coefficients in the loss (weights of tokens, such as "
            "`ld_alpha`), so there is no one sign that says where their log-probability is pulled."
        )
    return coefficient


def _check(args: Any, model: Any) -> None:
    check_backend(backend(), "The entanglement monitor's figures", "leave the monitor out")
    if getattr(args, "ld_alpha", None) is not None:
        raise ValueError(
            f"`ld_alpha` is {args.ld_alpha}, which weighs the tokens of an answer differently, and the entanglement "
            "monitor needs one coefficient an answer. Unset `ld_alpha`, or leave the monitor out."
        )
    if args.fp16:
        raise ValueError("`fp16` scales the loss, and with it the gradients' norms. Use bf16 with the monitor.")
    config = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    coefficient = getattr(args, "router_aux_loss_coef", None)
    coefficient = getattr(config, "router_aux_loss_coef", 0.0) if coefficient is None else coefficient
    if hasattr(config, "output_router_logits") and coefficient:
        raise ValueError(
            f"`router_aux_loss_coef` is {coefficient}: the auxiliary loss of a mixture of experts adds gradients that "
            "belong to neither answer. Set it to 0.0, or leave the entanglement monitor out."
        )
