"""Extraction audit: how much of the training data does the model write out, given how its examples begin?"""

import os
from dataclasses import asdict, astuple, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from .._text import check_whole_number
from ..data.private_files import make_private_folder
from ..scoring import fingerprints, load_scores, score_rows
from ..scoring.language_models import check_rows
from ..scoring.processes import on_main
from ..scoring.sft_data import SFTFormat
from ..scoring.sharding import is_split
from ..scoring.token_rows import TokenRow
from .canaries import audit_canaries
from .discoverable import suffix_probability
from .evaluation import require_sklearn
from .examples import Examples
from .extraction_figures import Guesses, suffix_figures
from .generation import ENDED, GREEDY, Attempt, GenerationScorer
from .models import REFERENCE, TARGET, AuditedModel
from .sampling import Sampling
from .setup import load_examples
from .suffixes import Prompt, SuffixScorer, hash_prompts, make_prompts
from .token_records import LOG_PROBS, default_cache, score_tokens

SAMPLES = (1, 10, 100, 1000)  # n of (n, p)-discoverable extraction
CHANCES = (0.1, 0.5, 0.9)  # p


@dataclass(frozen=True)
class ExtractionAudit:
    """What an extraction audit found, of N prompts, members first.

    Attributes:
        figures: everything that a report shows, as JSON can write it; no text of an example.
        members: which prompts are of members. (N,) bool
        rows: number of each prompt's example, members first, those that were too short counted. (N,)
        hashes: of the examples' tokens. N strings
        p_z: chance that one sample is the suffix. (N,)
        verbatim: by kind of guess ("greedy", "top", "any"), whether the suffix was written out; empty without
            generation. (N,) bool each
        prefixes, suffixes, guesses: texts of the prompt, of what followed it, and of the top-ranked guess (empty
            strings without generation). N strings each
    """

    figures: dict[str, Any]
    members: np.ndarray
    rows: np.ndarray
    hashes: list[str]
    p_z: np.ndarray
    verbatim: dict[str, np.ndarray]
    prefixes: list[str] = field(repr=False)
    suffixes: list[str] = field(repr=False)
    guesses: list[str] = field(repr=False)

    def table(self, show_text: bool = False) -> dict[str, Any]:
        """Return one row a prompt, as columns: hash, membership, chances and outcomes; texts only if asked for."""
        columns = {"hash": self.hashes, "member": self.members, "row": self.rows, "p_z": self.p_z}
        columns |= {f"verbatim_{kind}": values for kind, values in self.verbatim.items()}
        texts = {"prefix": self.prefixes, "suffix": self.suffixes, "guess": self.guesses}
        return {**columns, **texts} if show_text else columns


def audit_extraction(
    model: Any,
    dataset: Dataset,
    non_members: Dataset | None = None,
    *,
    prefix_tokens: int = 50,
    suffix_tokens: int = 50,
    generations: int = 8,
    sampling: Sampling | None = None,
    samples: tuple[int, ...] = SAMPLES,
    chances: tuple[float, ...] = CHANCES,
    canaries: Dataset | None = None,
    skip_short: bool = False,
    reference_model: Any = None,
    hold_out: Any = None,
    tokenizer: Any = None,
    layout: SFTFormat | None = None,
    max_examples: int | None = None,
    seed: int = 0,
    batch_size: int = 8,
    cache_folder: str | os.PathLike | None = None,
    dtype: Any = "auto",
    device: Any = None,
    model_init_kwargs: dict[str, Any] | None = None,
) -> ExtractionAudit:
    """Measure how much of the training data a model completes from its beginnings, beside the same for held-out data.

    One teacher-forced forward says, without sampling, how likely each suffix is to be written in n samples: (n, p)-
    discoverable extraction. Besides, the model writes after each prefix, greedily and sampled, and its guesses are
    ranked by FLoRA. All processes of a launch share the work, all of them get the same result, and what was done is
    kept for the next call.

    Args:
        model: a folder, a model of the Hub, or a causal language model in memory.
        dataset: what `hold_out` was given; with `non_members`, the rows that were trained on.
        non_members: rows that were not trained on; by default those that the record says were held out.
        prefix_tokens: tokens of an example that the model is given.
        suffix_tokens: tokens that it is to write; fewer where an example ends.
        generations: sampled guesses a prompt, besides the greedy one; 0 leaves generation out altogether.
        sampling: how the model samples; `Sampling()` when None.
        samples: values of n in (n, p)-discoverable extraction.
        chances: values of p.
        canaries: planted texts with the columns `text` and `alternatives`; their exposure is reported.
        skip_short: leave out examples that are too short for the prefix, and say how many.
        reference_model, hold_out, tokenizer, layout, max_examples, seed, batch_size, cache_folder, dtype, device,
            model_init_kwargs: as for `audit_membership`.

    Raises:
        ValueError: for data, tokenizers, records or options that do not fit; see `load_examples` and `make_prompts`.
        ImportError: if scikit-learn is missing.
    """
    require_sklearn()
    _check_options(generations, samples, chances)
    models = AuditedModel(model, reference_model, dtype, device, model_init_kwargs)
    layout = layout or SFTFormat()
    examples = load_examples(models, dataset, non_members, hold_out, tokenizer, layout, None, max_examples, seed)
    extraction = _Extraction(
        models=models,
        examples=examples,
        prompts=make_prompts(examples.rows, prefix_tokens, suffix_tokens, skip_short),
        width=suffix_tokens,
        generations=generations,
        sampling=sampling or Sampling(),
        seed=seed,
        batch_size=batch_size,
        cache=Path(cache_folder or default_cache()),
    )
    extraction.check_sides()
    found = extraction.score_suffixes()
    guesses = extraction.guess() if generations else None
    planted = None
    if canaries is not None:
        planted = audit_canaries(models, examples.tokenizer, canaries, layout, extraction.cache, batch_size)
    return on_main(lambda: extraction.evaluate(found, guesses, planted, samples, chances))


def _check_options(generations: Any, samples: Any, chances: Any) -> None:
    check_whole_number("generations", generations, 0)
    for n in samples:
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(f"`samples` must be whole numbers of at least 1, but one is {n!r}.")
    for p in chances:
        if isinstance(p, bool) or not isinstance(p, (int, float)) or not 0 < p <= 1:
            raise ValueError(f"`chances` must lie above 0 and be at most 1, but one is {p!r}.")


@dataclass(frozen=True)
class _Extraction:
    """The steps of one extraction audit; see `audit_extraction`."""

    models: AuditedModel
    examples: Examples
    prompts: list[Prompt]
    width: int
    generations: int
    sampling: Sampling
    seed: int
    batch_size: int
    cache: Path

    @cached_property
    def members(self) -> np.ndarray:
        """Which prompts are of members. (N,) bool"""
        return self.examples.members[[prompt.row for prompt in self.prompts]]

    @property
    def end_token(self) -> int | None:
        """The token that ends a text."""
        return self.examples.tokenizer.eos_token_id

    def check_sides(self) -> None:
        """Raise `ValueError` if no example of a side is long enough."""
        for side, name in ((True, "members"), (False, "non-members")):
            if not (self.members == side).any():
                raise ValueError(f"None of the {name} is longer than `prefix_tokens`. Set a smaller `prefix_tokens`.")

    def score_suffixes(self) -> dict[str, np.ndarray]:
        """Return the probability of each suffix token, sampled and greedy. (N, s) each"""
        options = (*astuple(self.sampling), self.width)

        def scorer(model: Any) -> SuffixScorer:
            return SuffixScorer(model, self.sampling, self.width)

        return self._run("suffixes", options, self.prompts, SuffixScorer.columns, scorer)

    def guess(self) -> Guesses:
        """Let the model write after each prompt, greedily and sampled, and rank what it wrote."""
        attempts = [Attempt(p, k) for p in self.prompts for k in (GREEDY, *range(self.generations))]
        options = (*astuple(self.sampling), self.width, self.generations, self.seed)

        def scorer(model: Any) -> GenerationScorer:
            return GenerationScorer(model, self.sampling, self.width, self.end_token, self.seed)

        written = self._run("guesses", options, attempts, GenerationScorer.columns, scorer)["guess"]
        written = written.reshape(len(self.prompts), 1 + self.generations, self.width)
        return Guesses([prompt.suffix for prompt in self.prompts], written, self._rank(written))

    def _run(self, name: str, options: tuple, items: list, columns: tuple[str, ...], make: Any) -> dict:
        """Score items with the target, or return what was scored before."""
        key = fingerprints.digest(name, 2, self.models.content(TARGET), hash_prompts(self.prompts), *options)
        folder = self.cache / key
        kept = load_scores(folder, key, columns, len(items))
        if kept is not None:
            return kept
        for _, model in self.models.open((TARGET,)):
            check_rows([self.examples.rows[prompt.row] for prompt in self.prompts], model)
            on_main(lambda: make_private_folder(folder))
            split = is_split(model)
            kept = score_rows(items, make(model), folder, key, self.batch_size, unit="prompt", in_step=split).columns
        return kept

    def _rank(self, guesses: np.ndarray) -> np.ndarray:
        """Return how likely each guess is to be training data, by FLoRA on prefix and guess. (N, 1 + n)"""
        rows, place, distinct = [], np.empty(guesses.shape[:2], dtype=np.int64), {}
        for i, prompt in enumerate(self.prompts):
            for k, guess in enumerate(guesses[i]):
                ids = np.concatenate([prompt.prefix, guess[guess != ENDED]])
                place[i, k] = distinct.setdefault((i, ids.tobytes()), len(rows))
                if place[i, k] == len(rows):
                    rows.append(TokenRow(ids, ids, prompt.row))
        found = score_tokens(self.models, rows, (LOG_PROBS,), self.cache, self.batch_size)
        losses = {which: np.array([-v.mean(dtype=np.float64) for v in of[LOG_PROBS]]) for which, of in found.items()}
        scores = -losses[TARGET]
        if REFERENCE in losses:
            scores = scores / np.maximum(losses[REFERENCE], 1e-12)
        return scores[place]

    def evaluate(
        self,
        found: dict[str, np.ndarray],
        guesses: Guesses | None,
        canaries: dict[str, Any] | None,
        samples: tuple[int, ...],
        chances: tuple[float, ...],
    ) -> ExtractionAudit:
        """Return what was found on both sides."""
        examples, kept = self.examples, [prompt.row for prompt in self.prompts]
        sides = {"members": self.members, "non_members": ~self.members}
        figures = {
            "format": 1,
            "audit": "extraction",
            "model": self.models.name,
            "model_hash": self.models.saved_hash,
            "reference": self.models.reference_name,
            "unsound": examples.unsound,
            "prefix_tokens": len(self.prompts[0].prefix),
            "suffix_tokens": self.width,
            "generations": self.generations,
            "sampling": asdict(self.sampling),
            "ranked_by": "flora" if REFERENCE in self.models.passes else "loss",
            "too_short": len(examples.rows) - len(self.prompts),
            "seed": self.seed,
            "canaries": canaries,
        }
        for name, side in sides.items():
            figures[name] = suffix_figures(found, side, samples, chances)
            if guesses is not None:
                figures[name].update(guesses.figures(side))
        return ExtractionAudit(
            figures=figures,
            members=self.members,
            rows=np.array(kept),
            hashes=[examples.hashes[i] for i in kept],
            p_z=suffix_probability(found["sampled"]),
            verbatim={} if guesses is None else guesses.verbatim,
            prefixes=self._texts([prompt.prefix for prompt in self.prompts]),
            suffixes=self._texts([prompt.suffix for prompt in self.prompts]),
            guesses=[""] * len(kept) if guesses is None else self._texts(guesses.best),
        )

    def _texts(self, tokens: list[np.ndarray]) -> list[str]:
        return self.examples.tokenizer.batch_decode(tokens)
