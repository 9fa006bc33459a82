"""One layer's place in a recorder: takes what its autograd function sees, sorts it by row, and tallies it."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .batch import Sorter
from .layers import embedding, linear
from .layers.expanded import row_sums

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
        """Take in the rows' gradients of a vector parameter of this layer. (r, k)"""
        recorder = self.recorder
        recorder.fired(self, name)
        if recorder.exact:
            recorder.tally.add(self.names[name], gradients)
        if recorder.sketch is not None:
            recorder.sketch.add_vectors(self.names[name], gradients)

    # ---- linear -------------------------------------------------------------------------------------------------

    def linear(self, x: Tensor, g: Tensor) -> Tensor:
        """Take in a linear layer's weight and return its gradient. (..., i), (..., o) -> (o, i)"""
        recorder, name = self.recorder, self.names.get("weight")
        if name is None:
            return linear.weight_gradient(x.reshape(1, -1, x.shape[-1]), g.reshape(1, -1, g.shape[-1]))
        recorder.fired(self, "weight")
        batch, tally = recorder.batch, recorder.tally
        x, g = batch.by_row(x, self.label), batch.by_row(g, self.label)
        if recorder.sketch is not None:
            recorder.sketch.add(linear.project(x, g, *self._probes(name, g, x)))
        if not recorder.exact:
            return linear.weight_gradient(x, g)
        if self.tied:  # the head's part at the batch's own tokens, which the embedding's part is compared with
            recorder.stash(name, torch.bmm(g[:, :, recorder.unique].transpose(1, 2), x))
        if tally.mode != "gram" and linear.ghost_is_cheaper(x, g):
            tally.add_products(name, linear.ghost_pairs(x, g, tally.pairs(x.device)))
            return linear.weight_gradient(x, g)
        return linear.materialise(x, g, lambda part: tally.add(name, part))

    def bias(self, g: Tensor) -> Tensor:
        """Take in a bias and return its gradient. (..., o) -> (o,)"""
        sums = row_sums(self.recorder.batch.by_row(g, self.label))
        if "bias" in self.names:
            self.see("bias", sums)
        return sums.sum(0)

    def _probes(self, name: str, outputs: Tensor, inputs: Tensor, vocabulary: int | None = None) -> tuple:
        """Return the probes of a weight's outputs and inputs. (o, k), (i, k)"""
        draw = self.recorder.sketch.probes
        return (
            draw(name, "u", vocabulary or outputs.shape[-1], outputs),
            draw(name, "v", inputs.shape[-1], inputs),
        )

    # ---- embedding ----------------------------------------------------------------------------------------------

    def embedding(self, ids: Tensor, g: Tensor) -> None:
        """Take in an embedding's weight. (size, t), (size, t, d)"""
        recorder, name = self.recorder, self.names["weight"]
        recorder.fired(self, "weight")
        batch, tally = recorder.batch, recorder.tally
        if batch.segments is not None:
            sorter = Sorter(batch.segments, batch.rows)
            ids, g = sorter(ids[0][:, None])[..., 0], sorter(g[0])
        padding_idx = getattr(self.module, "padding_idx", None)
        if recorder.sketch is not None:
            probes = self._probes(name, g, g, vocabulary=self.module.num_embeddings)
            recorder.sketch.add(embedding.project(ids, g, *probes, padding_idx))
        if not recorder.exact:
            return
        unique = recorder.unique if self.tied else torch.unique(ids)
        part = embedding.scatter(ids, g, unique, padding_idx).flatten(1)
        tally.add(name, part)
        head = recorder.stashed(name)
        if head is not None:
            tally.add_cross(name, head.flatten(1), part)

    # ---- TRL's fused head ---------------------------------------------------------------------------------------

    def head(self, hidden: Tensor, scored: Tensor, n: int, vocabulary: int) -> "HeadSight":
        """Return what looks at the head's gradient of the scored tokens.

        Args:
            hidden: last hidden states of the scored tokens. (s, d)
            scored: which of the n tokens given to the head they are. (s,)
            n: tokens given to the head.
            vocabulary: number of logits.
        """
        for name in self.names:
            self.recorder.fired(self, name)
        batch = self.recorder.batch
        rows = batch.rows_of_scored(n).to(scored.device)[scored]
        return HeadSight(self, hidden.float(), Sorter(rows, batch.rows), vocabulary)


class HeadSight:
    """Looks at the fused head's gradient while it is computed, a slice of the vocabulary at a time.

    Attributes:
        see: is given the rows' gradients; None when only projections are recorded.
        look: is given the gradient by the logits; None without projections.
    """

    def __init__(self, site: Site, hidden: Tensor, rows: Sorter, vocabulary: int):
        self.rows = rows
        self._site, self._hidden, self._vocabulary = site, hidden, vocabulary
        recorder = site.recorder
        self.see = self._see if recorder.exact else None
        self.look = self._look if recorder.sketch is not None else None
        self._projected: dict[str, Tensor] = {}
        self._kept = None
        if recorder.exact and site.tied:
            self._kept = hidden.new_zeros(recorder.batch.rows, len(recorder.unique), hidden.shape[1])

    def _see(self, weight: Tensor, bias: Tensor, start: int) -> None:
        """Take in the rows' gradients of a slice. (r, s, d), (r, s)"""
        recorder, names = self._site.recorder, self._site.names
        recorder.tally.add(names["weight"], weight.flatten(1))
        if "bias" in names:
            recorder.tally.add(names["bias"], bias)
        if self._kept is not None:
            inside = (recorder.unique >= start) & (recorder.unique < start + weight.shape[1])
            self._kept[:, inside] = weight[:, recorder.unique[inside] - start].to(self._kept.dtype)

    def _look(self, delta: Tensor, start: int) -> None:
        """Project the gradients by a slice of the logits. (n, s)"""
        draw, size = self._site.recorder.sketch.probes, self._vocabulary
        for name, side in (("weight", "u"), ("bias", "w")):
            if name in self._site.names:
                probes = draw(self._site.names[name], side, size, delta)[start : start + delta.shape[1]]
                part = delta @ probes.to(delta.dtype)  # (n, k)
                self._projected[name] = self._projected[name] + part if name in self._projected else part

    def end(self) -> None:
        """Hand the head's part at the batch's own tokens on to the embedding that shares its weight, and project."""
        recorder, names = self._site.recorder, self._site.names
        if self._kept is not None:
            recorder.stash(names["weight"], self._kept)
        for name, part in self._projected.items():
            if name == "weight":
                v = recorder.sketch.probes(names[name], "v", self._hidden.shape[1], part)
                part = part * (self._hidden.to(part.dtype) @ v.to(part.dtype))
            recorder.sketch.add(self.rows(part).sum(1))
