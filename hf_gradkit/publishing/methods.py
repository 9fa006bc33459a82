"""What a run was trained by, in words: each method by its own docstring, also one that is not ours."""

import dataclasses
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .papers import DPO, ENTANGLEMENT, Paper, paper_of
from .words import number, value_of

# What a trainer does, and the tags that TRL gives its models.
TASKS = {
    "SFTTrainer": ("supervised fine-tuning", ("trl", "sft")),
    "DPOTrainer": ("training on preference pairs", ("trl", "dpo")),
    "RewardTrainer": ("reward modelling on preference pairs", ("trl", "reward-trainer")),
    "Trainer": ("training with transformers' Trainer", ()),
}


@dataclass(frozen=True)
class Method:
    """One method of a run.

    Attributes:
        name: as configurations name it; it becomes a tag.
        text: what it is, as Markdown.
        options: its options, defaults included.
        paper: where it comes from, or None.
        tags: further ones.
    """

    name: str
    text: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    paper: Paper | None = None
    tags: tuple[str, ...] = ()


def methods_of(info: dict[str, Any]) -> list[Method]:
    """Return the methods of a run, from what `gradkit_run.json` says of it: objective, weights, filter, balancing."""
    settings = info.get("settings", {})
    return [
        *_objectives(info, settings),
        *_weighting(info, settings),
        *_balancing(settings),
        *_filter(settings),
    ]


def _objectives(info: dict[str, Any], settings: dict[str, Any]) -> list[Method]:
    names = info.get("loss_type") or settings.get("loss_type") or []
    names = [names] if isinstance(names, str) else names
    if info.get("trainer") == "DPOTrainer" and not names:
        names = ["sigmoid"]
    options = settings.get("loss_kwargs") or {}
    found = []
    for name in names:
        if name == "sigmoid":
            found.append(Method("dpo", "DPO, TRL's loss type `sigmoid`.", paper=DPO))
        elif ":" in name or name in ("rpo", "beta_dpo"):
            found.append(_described(name, options.get(name) or {}, _objective_class, "objective"))
        else:
            found.append(Method(name, f"TRL's loss type `{name}`."))
    weights = settings.get("loss_weights")
    if weights and len(found) > 1:
        sums = " + ".join(f"{number(w)} {of.name}" for w, of in zip(weights, found, strict=False))
        found[0] = dataclasses.replace(found[0], text=f"{found[0].text} The loss is {sums}.")
    return found


def _weighting(info: dict[str, Any], settings: dict[str, Any]) -> list[Method]:
    found, name = [], info.get("weighting", "none")
    if name != "none":
        method = _described(name, settings.get("weighting_kwargs") or {}, _weighting_class, "weighting of examples")
        if info.get("margin_temperature") is not None:
            by = settings.get("reward_model_name_or_path")
            source = f"by the reward model `{value_of(by)}`" if by else "of the data's own column"
            words = f" Reward margins {source} were divided by {number(info['margin_temperature'])}."
            method = dataclasses.replace(method, text=method.text + words)
        found.append(method)
    if settings.get("weight_column"):
        found.append(Method("weighted", f"Weights of examples from the data's column `{settings['weight_column']}`."))
    return found


def _balancing(settings: dict[str, Any]) -> list[Method]:
    kind = settings.get("gradient_balancing", "none")
    if kind == "none":
        return []
    text = f"Gradient balancing, `{kind}`: pulls of equal length on the chosen and the rejected answer of a pair."
    return [Method("gradient-balancing", text, paper=ENTANGLEMENT)]


def _filter(settings: dict[str, Any]) -> list[Method]:
    name = settings.get("data_filter", "none")
    if name == "none":
        return []
    return [_described(name, settings.get("data_filter_kwargs") or {}, selector_class, "filter of the training data")]


def _described(name: str, options: dict[str, Any], find: Callable[[str], type], what: str) -> Method:
    """Return a method by its class's docstring and the options it had; by its name alone where it cannot be found."""
    try:
        cls = find(name)
    except ValueError:  # of the user's own, on another machine
        return Method(name.rpartition(":")[2], f"`{name}`, a {what} of the author's own.", options)
    own = {field.name for field in dataclasses.fields(cls) if field.init}
    try:
        method = cls(**{key: value for key, value in options.items() if key in own})
    except (TypeError, ValueError):  # of another release
        return Method(name, f"{first_sentence(cls)}", options, paper_of(cls))
    every = {field.name: getattr(method, field.name) for field in dataclasses.fields(cls) if field.init}
    tags = getattr(method, "tags", ())
    text = getattr(method, "note", None) or f"{first_sentence(cls)[:-1]} ({what})."
    # What is not the method's own belongs to the comparison or the calibration around it.
    return Method(name.rpartition(":")[2], text, {**every, **options}, paper_of(cls), tuple(tags))


def first_sentence(cls: type) -> str:
    """Return the first sentence of a class's docstring, without the number of its paper."""
    paragraph = (inspect.getdoc(cls) or cls.__name__).split("\n\n")[0].replace("\n", " ")
    paragraph = re.sub(r"\s*[(,]?\s*arXiv \d{4}\.\d{5}\)?", "", paragraph)
    end = re.search(r"[.:](?=\s|$)", paragraph)
    return (paragraph[: end.start()] if end else paragraph).replace("[`", "`").replace("`]", "`") + "."


def _objective_class(name: str) -> type:
    from .._methods import find_class
    from ..objectives.registry import OBJECTIVE, OBJECTIVES

    return find_class(OBJECTIVE, name, OBJECTIVES)


def _weighting_class(name: str) -> type:
    from ..weighting.registry import find_method

    return find_method(name)


def selector_class(name: str) -> type:
    """Return the class of a selector; raises `ValueError` where there is none of this name."""
    from .._methods import find_class
    from ..selection.registry import SELECTOR, SELECTORS

    return find_class(SELECTOR, name, SELECTORS)
