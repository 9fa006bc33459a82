"""FiFA: keeps the preference pairs with large margins, good prompts and prompts that are unlike the others."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate.logging import get_logger
from datasets import Dataset

from ..scoring.pairs import check_pair_columns
from .base import Assessment, Selector, check_choice
from .components import Component, build_component, check_all, describe, evaluate
from .embedders import EMBEDDERS
from .entropy import knn_entropy
from .margins import MARGINS
from .nearest import check_search, find_distances, import_faiss
from .neighbours import check_k, neighbour_distances
from .picking import farthest, highest, is_number
from .quality import QUALITIES
from .summary import SHOWN, shorten
from .work import Work
from .zscore import RobustScale

logger = get_logger(__name__)

NEGATIVE = "negative margin"
ENTROPY_POINTS = 20_000


@dataclass(frozen=True, kw_only=True)
class FiFA(Selector):
    """Selects preference pairs by margin, prompt quality and prompt diversity; FiFA, arXiv 2410.10166.

        s_i = w_m Z(m_i) + w_q Z(q_i) + w_d Z(log(1 + eps_i))        and the K pairs with the highest s_i are kept

    m_i is the margin r(x, y_w) - r(x, y_l), q_i the quality of the prompt x, eps_i the distance of the prompt's
    embedding to its k-th nearest other prompt, and Z a robust Z-score, [`~hf_gradkit.selection.zscore.RobustScale`].
    The paper approximates by such a score the choice that maximises margin + quality + k-nearest-neighbour entropy of
    the prompts. Its coefficients, k, encoder and the instruction of its quality judge are not public in a form that
    could be checked: the defaults here are ours, and text takes the place of its images.

    Example:

    ```python
    from hf_gradkit.selection import FiFA

    result = FiFA(margin={"by": "reward_model", "model": "runs/reward"}, fraction=0.1).select(dataset)
    result.dataset, result.scores, result.report
    ```

    Args:
        margin: function of rows, or `"columns"` (margins or scores that the data has), `"reward_model"`, `"implicit"`
            (of DPO), as a mapping with `by` and options; None leaves margins out.
        quality: function of rows, or `"perplexity"`, `"classifier"`, `"column"`, likewise; None leaves it out. A
            reward of the chosen answer is no quality of the prompt: it is part of the margin already.
        embedder: function from rows to vectors, one a prompt, or `"tfidf"`, `"transformers"`,
            `"sentence_transformers"`, likewise; None leaves diversity out.
        margin_weight, quality_weight, diversity_weight: w_m, w_q and w_d, at least 0. A component of weight 0 is not
            computed.
        k: which neighbour.
        method: `"modular"` as above; `"greedy"` takes pairs one by one, and eps_i becomes the distance to the nearest
            prompt taken where that is smaller, so that two prompts that are nearly the same are not both taken.
        margin_direction: `"large"`, or `"small"` for pairs that are hard to tell apart (arXiv 2508.04149 finds small
            implicit margins better).
        drop_negative_margins: never take a pair whose margin contradicts its label.
        margin_cap: quantile, such as 0.95, above which margins count no more; None for no cap.
        max_per_prompt: most pairs of one prompt; None for no limit.
        neighbours: `"exact"`, `"faiss"` (approximate, with its recall reported), or `"auto"`: exact up to 200,000
            prompts, and a million on a GPU.
    """

    margin: Any = "columns"
    quality: Any = None
    embedder: Any = "tfidf"
    margin_weight: float = 1.0
    quality_weight: float = 0.5
    diversity_weight: float = 0.5
    k: int = 5
    method: str = "modular"
    margin_direction: str = "large"
    drop_negative_margins: bool = False
    margin_cap: float | None = None
    max_per_prompt: int | None = None
    neighbours: str = "auto"

    name: ClassVar[str] = "fifa"

    def __post_init__(self):
        super().__post_init__()
        check_choice("method", self.method, ("modular", "greedy"))
        check_choice("margin_direction", self.margin_direction, ("large", "small"))
        check_search(self.neighbours)
        check_k(self.k)
        for name in ("margin_weight", "quality_weight", "diversity_weight"):
            weight = getattr(self, name)
            if not is_number(weight) or not 0 <= weight < float("inf"):
                raise ValueError(f"`{name}` must be a finite number of at least 0, but it is {weight!r}.")
        cap = self.margin_cap
        if cap is not None and (not is_number(cap) or not 0 < cap < 1):
            raise ValueError(f"`margin_cap` is a quantile, between 0 and 1, but it is {self.margin_cap!r}.")
        most = self.max_per_prompt
        if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
            raise ValueError(f"`max_per_prompt` must be an integer of at least 1, but it is {most!r}.")
        self._check_parts()

    def _check_parts(self) -> None:
        parts = self._parts()  # builds them, so that a wrong name or option is said now
        if not parts:
            raise ValueError(
                "`margin`, `quality` and `embedder` are all None or of weight 0, so nothing tells the pairs apart. "
                "Give one of them, or select at random ('random')."
            )
        if self.drop_negative_margins and "margin" not in parts:
            raise ValueError("`drop_negative_margins` is True, but there is no `margin`. Give one.")
        if self.method == "greedy" and "embedder" not in parts:
            raise ValueError("`method` is 'greedy', which is about diversity, but there is no `embedder`. Give one.")

    def _parts(self) -> dict[str, Any]:
        """Return the components that count, by role."""
        roles = {
            "margin": (self.margin, self.margin_weight, MARGINS),
            "quality": (self.quality, self.quality_weight, QUALITIES),
            "embedder": (self.embedder, self.diversity_weight, EMBEDDERS),
        }
        built = {role: build_component(role, value, known) for role, (value, weight, known) in roles.items() if weight}
        return {role: component for role, component in built.items() if component is not None}

    def models(self) -> dict[str, Any]:
        """Return name and short hash of the content of each component's models, by component and option."""
        found = {role: part.models() for role, part in self._parts().items() if isinstance(part, Component)}
        return {role: models for role, models in found.items() if models}

    def check(self, dataset: Dataset) -> None:
        """Raise an error for missing columns or answers, and for what a component or faiss misses."""
        check_pair_columns(dataset)
        super().check(dataset)
        parts = self._parts()
        check_all(parts.values(), dataset)
        if "embedder" in parts and self.neighbours == "faiss":
            import_faiss()

    def assess(self, dataset: Dataset, work: Work) -> Assessment:
        """Return margin, quality and distance of each pair, their Z-scores, and the score."""
        parts, found = self._parts(), Assessment({})
        found.facts["components"] = {role: describe(component) for role, component in parts.items()}
        prompts = work.prompts(dataset)
        found.columns["prompt_number"] = prompts.of_row
        if "embedder" in parts:
            check_k(self.k, len(prompts))  # before anything is scored
        base = np.zeros(len(dataset))
        constant = []
        if "margin" in parts:
            values = evaluate(parts["margin"], "margin", dataset, work)
            if self.drop_negative_margins:
                found.ruled_out[NEGATIVE] = values < 0
            counted = values if self.margin_cap is None else np.minimum(values, np.quantile(values, self.margin_cap))
            counted = counted if self.margin_direction == "large" else -counted
            base += self._add(found, "margin", values, counted, self.margin_weight, constant)
        if "quality" in parts:
            values = evaluate(parts["quality"], "quality", dataset, work)
            base += self._add(found, "quality", values, values, self.quality_weight, constant)
        found.columns["score"] = base
        if "embedder" in parts:
            self._add_distances(found, parts["embedder"], dataset, work, constant)
        self._check_constant(constant, len(parts))
        return found

    def _add(
        self, found: Assessment, name: str, values: np.ndarray, counted: np.ndarray, weight: float, constant: list
    ) -> np.ndarray:
        """Put a component and its Z-score among the columns, and return its part of the score. (n,)"""
        scale = RobustScale(counted)
        if scale.is_constant:
            constant.append(name)
        found.columns[name], found.columns[f"{name}_z"] = values, scale(counted)
        return weight * found.columns[f"{name}_z"]

    def _add_distances(self, found: Assessment, embedder: Any, dataset: Dataset, work: Work, constant: list) -> None:
        """Embed each different prompt, and add what its distance to its neighbour is worth to the scores."""
        prompts = work.prompts(dataset)
        points = evaluate(
            embedder, "embedder", dataset.select(prompts.rows), work.of_part(prompts.rows), vectors=True
        )  # (U, d)
        with work.timed("neighbours"):
            eps, facts = find_distances(points, self.k, self.neighbours, self.seed, work)
        diversity = np.log1p(eps)[prompts.of_row]
        found.further = {
            "points": points,
            "eps": eps,
            "prompts": prompts,
            "base": found.columns["score"],
            "scale": RobustScale(diversity),
            "device": work.device,
        }
        found.columns["neighbour_distance"] = eps[prompts.of_row]
        found.columns["score"] = found.columns["score"] + self._add(
            found, "diversity", diversity, diversity, self.diversity_weight, constant
        )
        found.facts["neighbours"] = {
            "k": self.k,
            "unique_prompts": len(prompts),
            "dimension": points.shape[1],
            **facts,
        }

    def _check_constant(self, constant: list[str], parts: int) -> None:
        if len(constant) == parts:
            raise ValueError(
                f"Every component is constant ({', '.join(constant)}): nothing tells the pairs apart. Check the "
                "components, or select at random ('random')."
            )
        for name in constant:
            logger.warning(f"`{name}` is the same for all pairs, so it has no part in the selection.")

    def choose(self, found: Assessment, size: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the pairs to keep, best first, (K,) int64, and of greedy selection the score that each had then."""
        groups = found.columns["prompt_number"]
        if self.method == "modular":
            return highest(found.columns["score"], size, self.seed, found.allowed, groups, self.max_per_prompt), {}
        own = found.further
        taken, scores = farthest(
            own["base"],
            own["eps"],
            torch.from_numpy(own["points"]).to(own["device"]),
            groups,
            lambda eps: self.diversity_weight * own["scale"](np.log1p(eps)),
            size,
            self.seed,
            found.allowed,
            self.max_per_prompt,
            progress=True,
        )
        when_taken = np.full(len(groups), np.nan)
        when_taken[taken] = scores
        return taken, {"score_when_taken": when_taken}

    def describe_choice(self, dataset: Dataset, found: Assessment, kept: np.ndarray, drawn: np.ndarray) -> dict:
        """Return the entropy of the prompts before and after, and the prompts with the nearest and farthest others."""
        if "points" not in found.further:
            return {}
        own, prompts = found.further, found.further["prompts"]
        rows = {"all": slice(None), "kept": kept, "random": drawn}
        entropies = {
            part: prompt_entropy(own["points"][np.unique(prompts.of_row[numbers])], self.k, self.seed)
            for part, numbers in rows.items()
        }
        order = np.argsort(own["eps"], kind="stable")
        ends = {"nearest": order[:SHOWN], "farthest": order[::-1][:SHOWN]}
        shown = {
            end: [{"distance": float(own["eps"][i]), "prompt": shorten(prompts.texts[i])} for i in numbers]
            for end, numbers in ends.items()
        }
        return {"entropy": entropies, "prompts": shown}


def prompt_entropy(points: np.ndarray, k: int, seed: int) -> float | None:
    """Return the Kozachenko-Leonenko entropy of prompts in nats, copies counted once; None where there are too few.

    Of more than 20,000 points, so many are drawn. (U, d)
    """
    points = np.unique(points, axis=0)
    if len(points) > ENTROPY_POINTS:
        points = points[np.random.default_rng([seed, 5]).permutation(len(points))[:ENTROPY_POINTS]]
    if len(points) <= k:
        return None
    return knn_entropy(neighbour_distances(points, k), points.shape[1], k)
