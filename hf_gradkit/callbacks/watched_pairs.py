"""The monitored pairs of one step: from what the recorder says of rows to figures of pairs, over all ranks."""

from dataclasses import dataclass

import torch
from accelerate.utils import gather, pad_across_processes, reduce
from torch import Tensor

from ..gradients.entanglement import Entanglement
from ..gradients.errors import GradientRecordError
from ..gradients.projections import estimate
from ..gradients.recorder import Recorder

SPREAD = 1e-3  # of the coefficients of one row's tokens, beyond which they are not one coefficient
SURE = 2.0  # standard errors that a product must be away from zero for its sign to be known

MEASURES = ("cosine", "norm_ratio", "chosen_norm", "rejected_norm")
OUTCOMES = ("chosen_rises", "rejected_falls", "ideal", "both_fall", "both_rise", "inverted", "inactive")
# Of the step's direction where it is estimated, and of the forward after the step.
FURTHER = ("uncertain", "step_error", "observed_chosen_rises", "observed_rejected_falls", "agreement")
COLUMNS = (*MEASURES, *OUTCOMES, *FURTHER)


@dataclass
class WatchedPairs:
    """The pairs of one micro-batch: m chosen rows, then m rejected ones.

    Attributes:
        squares: squared norm of each row's gradient. (2m,)
        products: of chosen with rejected. (m,)
        signs: of the loss's derivative by each row's log-probability. (2m,)
        scale: turns norms into those of a pair's own loss, which the means over micro-batch and accumulation divide.
        along: each row's product with the micro-batch's summed gradient, for the direction of the step. (2m,)
        projections: of the rows, where other micro-batches or ranks have a part in the step. (2m, k)
        changes: of each row's log-probability by the step, once they were observed. (2m,)
    """

    squares: Tensor
    products: Tensor
    signs: Tensor
    scale: float
    along: Tensor | None = None
    projections: Tensor | None = None
    changes: Tensor | None = None

    @classmethod
    def of(cls, recorder: Recorder, gradient: Tensor, step: bool, sketched: bool) -> "WatchedPairs":
        """Read the micro-batch that was just backpropagated, as if it were a whole step.

        Args:
            recorder: recorded it.
            gradient: of the loss by the log-probabilities of tokens. (2m, t)
            step: take the direction of the whole step too.
            sketched: of which this micro-batch is a part only.

        Raises:
            GradientRecordError: for an odd number of rows, or rows whose tokens have different coefficients.
        """
        coefficients = row_coefficients(gradient)
        rows = len(coefficients)
        if rows % 2:
            raise GradientRecordError(
                f"The batch has {rows} rows, an odd number. Pairs are the chosen answers and after them the rejected."
            )
        squares = recorder.norms().square()
        return cls(
            squares=squares,
            products=recorder.pair_products(),
            signs=coefficients.sign().to(squares),
            scale=rows // 2,
            along=recorder.gram().sum(1) if step else None,
            projections=recorder.projections() if sketched else None,
        )

    def table(self, summed: Tensor | None) -> Tensor:
        """Return a row of `COLUMNS` for each pair; NaN where a column does not apply. (m, columns)

        Args:
            summed: projection of the whole step's gradient, where it is estimated. (k,)
        """
        half = len(self.products)
        along, error = self.along, None
        if summed is not None:
            rest, error = estimate(self.projections, summed - self.projections.sum(0))
            along = along + rest.to(along)
        effect = Entanglement(
            *self.squares.split(half),
            self.products,
            *self.signs.split(half),
            *((None, None) if along is None else along.split(half)),
        )
        values = {
            "cosine": effect.cosine,
            "norm_ratio": effect.norm_ratio,
            "chosen_norm": self.scale * effect.chosen_square.sqrt(),
            "rejected_norm": self.scale * effect.rejected_square.sqrt(),
            **effect.outcomes(),
        }
        if error is not None:
            unsure = (along.abs() < SURE * error).view(2, half).any(0)
            length = summed.double().norm() * self.squares.double().sqrt()
            values |= {"uncertain": unsure, "step_error": (error / length).view(2, half).mean(0)}
        if self.changes is not None:
            values |= _observed(effect, *self.changes.split(half))
        table = self.products.new_full((half, len(COLUMNS)), float("nan"))
        for name, value in values.items():
            table[:, COLUMNS.index(name)] = value.to(table)
        return table


def figures_of(batches: list[WatchedPairs]) -> tuple[dict[str, float], list[list[float]]]:
    """Return the means over the pairs of all micro-batches and ranks, and cosine and ratio of each active pair.

    Must be called on all ranks.
    """
    summed = None
    if batches[0].projections is not None:
        summed = reduce(sum(batch.projections.sum(0) for batch in batches), "sum")
    table = torch.cat([batch.table(summed) for batch in batches])
    # A marked row a pair, padded to the same number on every rank, so that the gather is a plain one.
    marked = torch.cat([table.new_ones(len(table), 1), table], dim=1)
    everything = gather(pad_across_processes(marked, dim=0, pad_index=0)).cpu()
    table = everything[everything[:, 0] == 1, 1:]
    active = table[:, COLUMNS.index("inactive")] == 0
    figures = {}
    for i, name in enumerate(COLUMNS):
        of = table[:, i] if name in OUTCOMES else table[active, i]
        of = of[of.isfinite()]
        if len(of):
            figures[f"entanglement/{name}"] = float(of.mean())
    return figures, [[round(value, 6) for value in row] for row in table[active][:, :2].tolist()]


def _observed(effect: Entanglement, chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
    """Return what the step did, and which share of a pair's two answers went where it was said. (m,) each

    An answer that did not move at all (a learning rate of 0 in the first step of a warm-up) went nowhere: it is not
    counted, and a pair of two such answers has no agreement (NaN).
    """
    rose, fell = chosen > 0, rejected < 0
    moved = torch.stack([chosen != 0, rejected != 0])
    right = torch.stack([rose == effect.chosen_rises, fell == effect.rejected_falls]) & moved
    agreement = right.sum(0) / moved.sum(0)  # 0 / 0 is NaN
    return {"observed_chosen_rises": rose, "observed_rejected_falls": fell, "agreement": agreement}


def row_coefficients(gradient: Tensor) -> Tensor:
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
