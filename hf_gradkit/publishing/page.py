"""Pages for the Hub: written between two marks, so that what a person writes around them stays."""

import os
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from .facts import ModelFacts
from .methods import TASKS
from .model_sections import sections
from .results import eval_results
from .sources import card_metadata

FILE = "README.md"
BEGIN, END = "<!-- hf_gradkit: begin, written anew by each push -->", "<!-- hf_gradkit: end -->"
# What the pages have in them that TRL, transformers and PEFT write by themselves.
DRAFTS = ("generated_from_trainer", "[More Information Needed]", "This model is a fine-tuned version of")
PEFT_FOOT = "### Framework versions\n\n- PEFT"


def model_page(facts: ModelFacts, drawn: list[tuple[str, str, str]]) -> ModelCard:
    """Return the page of a model.

    Args:
        facts: what is known of it.
        drawn: its pictures; see [`~hf_gradkit.publishing.plots.draw`].
    """
    body = "\n\n".join([f"# {facts.name}", *sections(facts, drawn)])
    return ModelCard(with_head(model_metadata(facts), around(facts.folder, body)))


def model_metadata(facts: ModelFacts) -> ModelCardData:
    """Return the metadata of a model's page, the evaluation results among them."""
    results = eval_results(facts)
    kind = "text-classification" if facts.is_classifier else "text-generation" if facts.writes_text else None
    given = {key: value for key, value in facts.given.items() if key not in ("tags", "datasets")}
    return ModelCardData(
        base_model=facts.base.hub,
        base_model_relation=("adapter" if facts.adapter else "finetune") if facts.base.hub else None,
        datasets=facts.hub_data() or None,
        library_name="peft" if facts.adapter else "transformers",
        pipeline_tag=kind,
        tags=tags(facts),
        model_name=facts.name if results else None,
        eval_results=results or None,
        **given,
    )


def tags(facts: ModelFacts) -> list[str]:
    """Return the tags by which a model is found: hf_gradkit, trainer, methods, kind of adapter, the user's own."""
    found = ["hf_gradkit", *(TASKS[facts.trainer][1] if facts.trainer else ())]
    for method in facts.methods:
        found += [method.name, *method.tags]
    if facts.adapter:
        found.append(str(facts.adapter.get("peft_type", "peft")).lower())
    given = facts.given.get("tags") or []
    return list(dict.fromkeys([*found, *([given] if isinstance(given, str) else given)]))


def around(folder: Path, body: str) -> str:
    """Return a page's text with what a person wrote on the page that is in the folder; drafts are replaced."""
    marked = f"{BEGIN}\n\n{body.strip()}\n\n{END}"
    earlier = _text_of(folder / FILE)
    if BEGIN in earlier and END in earlier:
        before, _, rest = earlier.partition(BEGIN)
        after = rest.partition(END)[2]
        after = after.partition(PEFT_FOOT)[0]  # PEFT writes it below any page when it saves an adapter
        return "\n\n".join(part.strip() for part in (before, marked, after) if part.strip()) + "\n"
    tagged = "generated_from_trainer" in (card_metadata(folder).get("tags") or [])
    if not earlier.strip() or tagged or any(draft in earlier for draft in DRAFTS):
        return marked + "\n"
    return f"{earlier.strip()}\n\n{marked}\n"


def with_head(metadata: Any, text: str) -> str:
    """Return a page of metadata and text; empty metadata is left out."""
    return f"---\n{metadata.to_yaml()}\n---\n\n{text}"


def write_page(card: Any, folder: Path) -> Path:
    """Write a page into a folder, whole or not at all, and return its path."""
    temporary = folder / f"{FILE}.tmp"
    temporary.write_text(str(card), encoding="utf-8")
    os.replace(temporary, folder / FILE)
    return folder / FILE


def _text_of(path: Path) -> str:
    """Return the text of a page without its metadata; "" where there is none."""
    if not path.is_file():
        return ""
    text = path.read_text(encoding="utf-8")
    if text.startswith("---\n"):
        _, found, rest = text[4:].partition("\n---")
        return rest if found else text
    return text
