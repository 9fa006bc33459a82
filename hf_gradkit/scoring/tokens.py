"""Per-token figures of tokenised examples under a causal language model, without ever building logits.

Letters: n examples, T tokens of the longest one; position t predicts token t + 1, so there are T - 1 positions.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from trl.trainer.utils import add_fused_lm_head

from .._text import did_you_mean, listing
from .token_rows import IGNORED, TokenRow
from .vocabulary import OF_TRL, VARIANCE, head_in_one_pass
from .work import as_ragged

STATISTICS = (*OF_TRL, VARIANCE)


@dataclass(frozen=True)
class TokenStatistics:
    """Figures at each position of a batch, zero where there is no label; None where they were not asked for.

    Attributes:
        mask: whether the position has a label. (n, T - 1) bool
        log_probs: log-probability of the label, in nats; differentiable. (n, T - 1) float32
        entropy: of the next token's distribution, in nats: minus the mean log-probability under it. (n, T - 1)
        log_sum_sq_probs: log of the sum of the squared probabilities of all tokens. (n, T - 1)
        mean_logits: plain mean of the logits. (n, T - 1)
        is_top1: whether the label is the likeliest token. (n, T - 1) bool
        log_prob_variance: variance of the log-probability under the next token's distribution; no gradient. (n, T - 1)
    """

    mask: Tensor
    log_probs: Tensor
    entropy: Tensor | None = None
    log_sum_sq_probs: Tensor | None = None
    mean_logits: Tensor | None = None
    is_top1: Tensor | None = None
    log_prob_variance: Tensor | None = None

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over the label tokens of each example; NaN for one without any. (n, T - 1) -> (n,) float32

        Gradients flow through it.
        """
        return (values.float() * self.mask).sum(1) / self.mask.sum(1)

    def losses(self) -> Tensor:
        """Return each example's mean cross-entropy over its label tokens, in nats. (n,) float32"""
        return -self.mean(self.log_probs)

    def el2n(self) -> Tensor:
        """Return the length of p - onehot(label) at each position, arXiv 2107.07075. (n, T - 1) float32, in [0, 1.42]

        ||p - onehot(y)||^2 = sum_k p_k^2 + 1 - 2 p_y = (1 - p_y)^2 + R with R = sum_k p_k^2 - p_y^2, the other tokens'
        part. In float32, R is lost in rounding where p_y is nearly 1; as it lies between 0 and (1 - p_y)^2, it is kept
        there, and the result is right within 2e-4 on such tokens, and within rounding on others.
        """
        log_p = self.log_probs.detach().float()
        missing = torch.expm1(log_p).square()  # (1 - p_y)^2
        rest = self.log_sum_sq_probs.float().exp() - (2 * log_p).exp()
        return (missing + rest.clamp(min=0).minimum(missing)).sqrt() * self.mask

    def by_example(self, name: str) -> np.ndarray:
        """Return a figure at the label tokens of each example, in order. (n,) of arrays (label tokens,) float32"""
        values = getattr(self, name).detach().float().cpu().numpy()
        mask = self.mask.cpu().numpy()
        return as_ragged([of_row[there] for of_row, there in zip(values, mask, strict=True)])


@contextmanager
def token_statistics(
    model: Any, outputs: Sequence[str] = ("log_probs",), one_pass: bool = False
) -> Iterator[Callable[[list[TokenRow]], TokenStatistics]]:
    """Let a causal language model give per-token figures of examples.

    The logits are never built: the figures come from TRL's fused head, as in training, in float32 (from matrix
    products in the model's own type); with "log_prob_variance" and without gradients from `head_figures`. Examples are
    padded on the right, whatever the tokenizer's side, and masked; so figures do not depend on the batch, up to
    rounding. The model's own forward comes back at the end.

    >>> with token_statistics(model, ("log_probs", "entropy")) as statistics, torch.inference_mode():
    ...     statistics(rows).losses()  # (n,)

    Args:
        model: a transformers model with a language model's head, or a PEFT model of one, on its device. Put it into
            evaluation mode, or dropout is on.
        outputs: of `STATISTICS`; "log_probs" is always there.
        one_pass: take figures from `head_figures` in any case, so that those of two models that are compared differ
            by the models alone, and not by the rounding of two ways to compute them.

    Raises:
        ValueError: for unknown outputs, an adapter on the output head, which the fused head would not see, or one that
            adds tokens to the prompt.
    """
    for name in outputs:
        if name not in STATISTICS:
            raise ValueError(
                f"There is no per-token figure {name!r}.{did_you_mean(name, STATISTICS)} Known ones: "
                f"{listing(STATISTICS)}."
            )
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    if isinstance(inner.get_output_embeddings(), BaseTunerLayer):
        raise ValueError(
            "The adapter is on the output head, whose weight the fused head reads directly, so the adapter would not "
            "count. Merge the adapter into the model (`merge_and_unload`) and save it."
        )
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        raise ValueError(
            f"The adapter ({model.active_peft_config.peft_type.value}) puts tokens of its own before the prompt, so "
            "that all positions move. Use a LoRA adapter, or a whole model."
        )
    of_trl = tuple(name for name in OF_TRL if name in ("log_probs", *outputs))
    own = vars(inner).get("forward")
    add_fused_lm_head(inner, outputs=of_trl)
    try:
        yield lambda rows: _statistics(model, rows, of_trl, VARIANCE in outputs, one_pass)
    finally:
        if own is None:
            del inner.forward
        else:
            inner.forward = own


def _statistics(
    model: Any, rows: list[TokenRow], of_trl: tuple[str, ...], variance: bool, one_pass: bool
) -> TokenStatistics:
    batch = collate(rows, model.device)
    with head_in_one_pass(variance) if variance or one_pass else nullcontext([]) as found:
        outputs = model(**batch, fused_lm_head=True, use_cache=False)
    extra = {VARIANCE: _at_positions(found[0], outputs.label_mask)} if variance else {}
    return TokenStatistics(outputs.label_mask, **{name: getattr(outputs, name) for name in of_trl}, **extra)


def _at_positions(values: Tensor, mask: Tensor) -> Tensor:
    """Put figures of all positions, or of those with a label only, where they belong. (k,) -> (n, T - 1)"""
    if len(values) == mask.numel():
        return values.view(mask.shape).masked_fill(~mask, 0)
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


def collate(rows: list[TokenRow], device: Any = "cpu") -> dict[str, Tensor]:
    """Return a batch, padded on the right: `input_ids`, `attention_mask` and `labels`. (n, T) int64 each

    Padding is token 0: it is masked, no label, and after everything that a causal model reads.
    """
    lengths = np.array([len(row) for row in rows])
    real = np.arange(max(2, lengths.max())) < lengths[:, None]  # (n, T)
    ids, labels = np.zeros(real.shape, dtype=np.int64), np.full(real.shape, IGNORED)
    ids[real] = np.concatenate([row.input_ids for row in rows])
    labels[real] = np.concatenate([row.labels for row in rows])
    batch = {"input_ids": ids, "attention_mask": real.astype(np.int64), "labels": labels}
    return {name: torch.from_numpy(values).to(device, non_blocking=True) for name, values in batch.items()}


class TokenScorer:
    """Scores examples token by token, for `score_rows`: each figure is one array an example, of its label tokens.

    Args:
        statistics: what `token_statistics` gives.
        outputs: names of the figures, fields of `TokenStatistics`.
    """

    def __init__(self, statistics: Callable[[list[TokenRow]], TokenStatistics], outputs: Sequence[str]):
        known = {field.name for field in fields(TokenStatistics)}
        self.columns = tuple(name for name in outputs if name in known)
        self._statistics = statistics

    def length(self, item: TokenRow) -> int:
        """Return the number of tokens."""
        return len(item)

    @torch.inference_mode()
    def score(self, items: list[TokenRow]) -> dict[str, np.ndarray]:
        """Return each figure at the label tokens. (n,) of arrays (label tokens,) float32"""
        found = self._statistics(items)
        return {name: found.by_example(name) for name in self.columns}
