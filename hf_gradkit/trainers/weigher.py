"""The weigher: from the losses of this rank's examples to their multipliers, alike on all ranks."""

import hashlib
import logging
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from ..data.columns import ExampleInfo
from ..data.seen import SeenItems
from ..reporting.example_log import ROWS_PER_PART, ExampleLog
from ..reporting.example_metrics import ExampleMetrics, effective_sample_size
from ..weighting.base import PairRecord, multipliers_of
from ..weighting.scope import Comparison, RunningWindow
from .gathering import gather_rows

logger = logging.getLogger(__name__)


class NonFiniteLossError(FloatingPointError):
    """Raised, on all ranks and before the optimizer steps, when an example's loss is NaN or infinite."""


class ExampleWeigher:
    """Gathers example losses over the ranks, weighs them, and keeps what the logs and the next steps need.

    The arithmetic runs on the CPU in float64 on a few hundred numbers; one gather per micro-batch is all that ranks
    exchange.

    Args:
        method: maps a `LossRecord` or a `PairRecord` to multipliers, or None when only columns (weights, groups, log)
            are in use.
        comparison: which examples are compared.
        accelerator: the trainer's.
        log: where each example's loss and weight are written, or None.
        temperature: what reward margins are divided by before they are weighed.
    """

    def __init__(
        self,
        method: Any,
        comparison: Comparison,
        accelerator: Accelerator,
        log: ExampleLog | None,
        temperature: float = 1.0,
    ):
        self.method = method
        self.comparison = comparison
        self.temperature = temperature
        self.accelerator = accelerator
        self.log = log
        self.metrics = ExampleMetrics()
        self.tell_losses: Callable[[Tensor, Tensor], None] | None = None  # row numbers and losses, of all ranks
        self._group_names: dict[int, str] = {}
        self._shared_codes: set[int] = set()  # codes whose names all ranks know
        self._step_ess = 1.0
        self._warned = False
        self._reset()

    # ---- the run ----------------------------------------------------------------------------------------------

    def start(self, max_steps: int, state: dict[str, Any] | None) -> None:
        """Begin a run of `max_steps` optimizer steps, fresh or from a checkpoint's `state_dict`."""
        self._reset()
        self.warmup_steps = self.comparison.warmup_steps(max_steps)
        if state is not None:
            self.epoch = state["epoch"]
            self._seen = SeenItems(state["seen"])
            self.window.load_state_dict(state["window"])
        if self.log is not None:
            self.log.start(state["log_part"] if state else None)

    def _reset(self) -> None:
        self.metrics.reset()
        self.warmup_steps = 0
        self.window = RunningWindow(self.comparison.window)
        self.epoch = -1
        self.epoch_ends = False  # whether the current step is the epoch's last
        self.tokens_seen: float | None = None  # label tokens that this run trained on
        self._seen = SeenItems()
        self._rows_of_part = 0

    def begin_epoch(self, epoch: int) -> None:
        """Note a new pass over the data; a resumed epoch goes on where its checkpoint was."""
        if epoch != self.epoch:
            self.epoch = epoch
            self._seen = SeenItems()

    def state_dict(self) -> dict[str, Any]:
        """Return the training state - tensors and plain numbers - after writing the example log so far."""
        self.flush_log()
        return {
            "epoch": self.epoch,
            "seen": self._seen.state(),
            "window": self.window.state_dict(),
            "log_part": self.log.part if self.log is not None else 0,
        }

    def flush_log(self) -> None:
        """Write the rows of the example log that are not written yet."""
        if self.log is not None:
            self.log.flush()
            self._rows_of_part = 0

    # ---- one micro-batch --------------------------------------------------------------------------------------

    def weigh(self, sums: Tensor, tokens: Tensor, info: ExampleInfo, step: int) -> Tensor:
        """Return the multipliers of this rank's examples of one micro-batch, column weights included.

        Args:
            sums: summed token cross-entropy of each example. (n,)
            tokens: label tokens of each example; one without any is neither compared nor counted. (n,)
            info: what the examples carry.
            step: optimizer steps finished so far.

        Returns:
            Multipliers, float64 on the CPU. (n,)

        Raises:
            NonFiniteLossError: naming the examples.
        """
        table, mine = self._gather(sums, tokens, info)
        losses, valid = self._losses(table)
        if self.tell_losses is not None:
            self.tell_losses(table["index"][valid], losses[valid])
        # In an epoch's last step, an item that was there before fills the batch up: it trains, as always, but is not
        # counted again. Before that a sampler with replacement may well repeat one.
        new = self._seen.add(table["item"], table["index"]) | (not self.epoch_ends)
        self.tokens_seen = (self.tokens_seen or 0.0) + float(table["tokens"].sum())
        counted = new & valid

        multipliers, ess = torch.ones_like(losses), None
        if self.method is not None:
            multipliers, ess = self._multipliers(table, losses, valid, new)
            if step < self.warmup_steps:
                multipliers, ess = torch.ones_like(losses), 1.0
        multipliers = multipliers * table["weight"]
        if ess is None and counted.any():
            ess = effective_sample_size(multipliers[counted])

        if info.margin is not None:
            self.metrics.add_margins(table["margin"][counted], self.temperature)
        compares = self.method is not None and self.method.record_type is not PairRecord
        running = compares and self.comparison.scope == "running"
        self.metrics.add_weights(multipliers[counted], ess, self.window.mean if running else None)
        if self.comparison.normalization == "token":
            self.metrics.add_loss(float(table["sums"].sum()), float(table["tokens"].sum()))
        else:
            self.metrics.add_loss(float(losses[valid].sum()), int(valid.sum()))
        self._add_groups(info, table, losses, multipliers, counted)
        if self.log is not None:
            self._add_rows(info, losses[mine], table["tokens"][mine], multipliers[mine], counted[mine], step)
            self._rows_of_part += len(losses)  # of all ranks, so that parts end together
            if self._rows_of_part >= ROWS_PER_PART:
                self.flush_log()
        return multipliers[mine]

    def weigh_step(self, sums: Tensor, tokens: Tensor, index: Tensor) -> Tensor:
        """Return what the method gives this rank's examples of a whole optimizer step. (n,)

        Args:
            sums, tokens, index: as in `weigh` and its `info`, the step's micro-batches one after the other. (n,)

        Raises:
            NonFiniteLossError: naming the examples.
        """
        info = ExampleInfo(index=index, item=index, weight=torch.ones(len(index)))
        table, mine = self._gather(sums, tokens, info)
        losses, valid = self._losses(table)
        multipliers = torch.ones_like(losses)
        if valid.any():
            multipliers[valid] = multipliers_of(self.method, losses[valid])
        self._step_ess = effective_sample_size(multipliers[valid]) if valid.any() else 0.0
        return multipliers[mine]

    def _multipliers(self, table, losses: Tensor, valid: Tensor, new: Tensor) -> tuple[Tensor, float | None]:
        """Return the method's multipliers of the gathered examples, and the ESS of those it compared."""
        scope = self.comparison.scope
        if not valid.any():
            return torch.ones_like(losses), None
        multipliers = torch.ones_like(losses)
        if self.method.record_type is PairRecord:
            multipliers[valid] = multipliers_of(self.method, table["margin"][valid] / self.temperature)
            return multipliers, effective_sample_size(multipliers[valid])
        if scope == "step":
            preset = table["multipliers"]
            known = ~preset.isnan()  # NaN: warm-up
            multipliers[known] = preset[known]
            return multipliers, self._step_ess if known.any() else 1.0
        if scope == "running":
            multipliers[valid], compared = self.window.weigh(self.method, losses[valid], new[valid])
            return multipliers, effective_sample_size(compared)
        if len(losses) == 1 and not self._warned:
            self._warned = True
            logger.warning(
                "Scope 'micro_batch' compares the examples of one micro-batch over all processes, and here that is a "
                "single example: its weight is always 1 and weighting does nothing. Use scope 'running' or 'step' in "
                "`weighting_kwargs`, or a larger batch."
            )
        multipliers[valid] = multipliers_of(self.method, losses[valid])
        return multipliers, effective_sample_size(multipliers[valid])

    # ---- over the ranks ---------------------------------------------------------------------------------------

    def _gather(self, sums: Tensor, tokens: Tensor, info: ExampleInfo) -> tuple[dict[str, Tensor], slice]:
        """Return the examples of all ranks, in the order of the global ranks, and the slice of this rank's."""
        n = len(info)
        if len(sums) != n:
            raise ValueError(
                f"There are {len(sums)} losses for a batch of {n} examples. A `per_example_loss` must return one "
                "value an example, in the batch's order."
            )
        unknown = torch.full((n,), float("nan"))
        preset = info.multipliers if info.multipliers is not None else unknown
        margin = info.margin if info.margin is not None else unknown
        groups = torch.tensor([self._group_code(name) for name in info.group] if info.group else [0] * n)
        carried = torch.stack([t.double() for t in (info.index, info.item, info.weight, preset, margin, groups)])
        alone = self.accelerator.num_processes == 1
        place = torch.device("cpu") if alone else self.accelerator.device
        measured = torch.stack([sums.detach(), tokens.to(sums.dtype)]).to(place).double()
        gathered, mine = gather_rows(self.accelerator, torch.cat([measured, carried.to(place)]).T)
        names = ("sums", "tokens", "index", "item", "weight", "multipliers", "margin", "group")
        return dict(zip(names, gathered.T, strict=True)), mine

    def _group_code(self, name: str) -> int:
        # The same on every rank without a list of all groups, and a whole number that float64 holds exactly.
        code = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=6).digest(), "big")
        if self._group_names.setdefault(code, name) != name:
            raise ValueError(
                f"The groups {name!r} and {self._group_names[code]!r} cannot be told apart by their checksum. Rename "
                "one of them."
            )
        return code

    def _add_groups(self, info, table, losses: Tensor, multipliers: Tensor, counted: Tensor) -> None:
        if info.group is None:
            return
        codes = [int(code) for code in table["group"].unique()]
        if self.accelerator.num_processes > 1 and not set(codes) <= self._shared_codes:
            # A group that is new to the run: all ranks see its code in the same micro-batch, and exchange names.
            for names in gather_object([self._group_names]):
                for name in names.values():
                    self._group_code(name)
            self._shared_codes |= set(codes)
        for code in codes:
            of_group = (table["group"] == code) & counted
            if of_group.any():
                self.metrics.add_group(self._group_names[code], losses[of_group], multipliers[of_group])

    # ---- checks and rows --------------------------------------------------------------------------------------

    def _losses(self, table: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the mean losses of the gathered examples, all finite, and which of them have a label token."""
        losses, index = table["sums"] / table["tokens"].clamp(min=1), table["index"]
        bad = (~losses.isfinite()).nonzero().flatten()
        if len(bad):
            rows = [int(i) for i in index[bad[:10]]]
            where = f"rows {rows} of the training data" if min(rows) >= 0 else f"positions {bad[:10].tolist()}"
            raise NonFiniteLossError(
                f"The loss of {len(bad)} example(s) is not finite: {where}. Training stops before the optimizer sees "
                "it. Look at these rows; if they are sound, lower the learning rate or train in bf16 or fp32 instead "
                "of fp16. The last checkpoint is untouched."
            )
        return losses, table["tokens"] > 0

    def _add_rows(self, info, losses, tokens, multipliers, counted, step: int) -> None:
        ids = info.example_id if info.example_id is not None else info.index.tolist()
        keep = counted.tolist()
        rows = {
            "example_id": [i for i, k in zip(ids, keep, strict=True) if k],
            "epoch": [self.epoch] * sum(keep),
            "step": [step] * sum(keep),
            "loss": losses[counted].tolist(),
            "tokens": tokens[counted].long().tolist(),
            "weight": multipliers[counted].tolist(),
        }
        if info.margin is not None:
            rows["margin"] = [m for m, k in zip(info.margin.tolist(), keep, strict=True) if k]
        if info.group is not None:
            rows["group"] = [g for g, k in zip(info.group, keep, strict=True) if k]
        self.log.add(rows)
