"""One layer's place in a recorder: takes what its autograd function sees, sorts it by row, and tallies it."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .batch import Sorter
from .layers.embedding import scatter
from .layers.expanded import row_sums
from .layers.linear import ghost_is_cheaper, ghost_pairs, materialise, weight_gradient

if TYPE_CHECKING:
    from .recorder import Recorder


class Site:
    """A layer whose parameters are recorded.

    Args:
        recorder: whose tally is added to.
        module: the layer.
        names: its own parameters that are recorded, by their names in the layer: their names in the model.
        tied: whether its weight is that of another layer too: an embedding and the output head.
    """

    def __init__(self, recorder: "Recorder", module: torch.nn.Module, names: dict[str, str], tied: bool):
        self.recorder, self.module, self.names, self.tied = recorder, module, names, tied

    @property
    def label(self) -> str:
        """Name of the layer, for messages."""
        return next(iter(self.names.values())).rpartition(".")[0]

    def see(self, name: str, gradients: Tensor) -> None:
        """Tally the rows' gradients of a parameter of this layer. (r, k)"""
        self.recorder.fired(self, name)
        self.recorder.tally.add(self.names[name], gradients)

    # ---- linear -------------------------------------------------------------------------------------------------

    def linear(self, x: Tensor, g: Tensor) -> Tensor:
        """Tally a linear layer's weight and return its gradient. (..., i), (..., o) -> (o, i)"""
        recorder, name = self.recorder, self.names.get("weight")
        if name is None:
            return weight_gradient(x.reshape(1, -1, x.shape[-1]), g.reshape(1, -1, g.shape[-1]))
        recorder.fired(self, "weight")
        batch, tally = recorder.batch, recorder.tally
        x, g = batch.by_row(x, self.label), batch.by_row(g, self.label)
        if self.tied:  # the head's part at the batch's own tokens, which the embedding's part is compared with
            recorder.stash(name, torch.bmm(g[:, :, recorder.unique].transpose(1, 2), x))
        if tally.mode != "gram" and ghost_is_cheaper(x, g):
            tally.add_products(name, ghost_pairs(x, g, tally.pairs(x.device)))
            return weight_gradient(x, g)
        return materialise(x, g, lambda part: tally.add(name, part))

    def bias(self, g: Tensor) -> Tensor:
        """Tally a bias and return its gradient. (..., o) -> (o,)"""
        sums = row_sums(self.recorder.batch.by_row(g, self.label))
        if "bias" in self.names:
            self.see("bias", sums)
        return sums.sum(0)

    # ---- embedding ----------------------------------------------------------------------------------------------

    def embedding(self, ids: Tensor, g: Tensor) -> None:
        """Tally an embedding's weight. (size, t), (size, t, d)"""
        recorder, name = self.recorder, self.names["weight"]
        recorder.fired(self, "weight")
        batch, tally = recorder.batch, recorder.tally
        if batch.segments is not None:
            sorter = Sorter(batch.segments, batch.rows)
            ids, g = sorter(ids[0][:, None])[..., 0], sorter(g[0])
        unique = recorder.unique if self.tied else torch.unique(ids)
        part = scatter(ids, g, unique, getattr(self.module, "padding_idx", None)).flatten(1)
        tally.add(name, part)
        head = recorder.stashed(name)
        if head is not None:
            tally.add_cross(name, head.flatten(1), part)

    # ---- TRL's fused head ---------------------------------------------------------------------------------------

    def head(self, n: int, scored: Tensor):
        """Return how the scored tokens sort by row, and what looks at the slices of the head's gradient."""
        recorder, name = self.recorder, self.names["weight"]
        recorder.fired(self, "weight")
        batch = recorder.batch
        sorter = Sorter(batch.rows_of_scored(n).to(scored.device)[scored], batch.rows)
        width = self.module.weight.shape[1]
        kept = None
        if self.tied:
            kept = torch.zeros(batch.rows, len(recorder.unique), width, device=scored.device)

        def see(weight: Tensor, bias: Tensor, start: int) -> None:
            recorder.tally.add(name, weight.flatten(1))
            if "bias" in self.names:
                recorder.tally.add(self.names["bias"], bias)
            if kept is not None:
                inside = (recorder.unique >= start) & (recorder.unique < start + weight.shape[1])
                kept[:, inside] = weight[:, recorder.unique[inside] - start].to(kept.dtype)

        self._kept = kept
        return sorter, see

    def end_head(self) -> None:
        """Hand the head's part at the batch's own tokens on to the embedding that shares its weight."""
        if self._kept is not None:
            self.recorder.stash(self.names["weight"], self._kept)
        self._kept = None
