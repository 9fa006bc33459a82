"""The lines of Python that load what was published and run it."""

from pathlib import Path

from .facts import ModelFacts

NAME = "OWNER/NAME"  # where the repository is not known yet


def snippet(facts: ModelFacts) -> str:
    """Return the code that loads the model and runs it."""
    where = f'"{facts.repo or NAME}"' + (f', revision="{facts.revision}"' if facts.revision else "")
    if facts.is_classifier:
        return _classifier(facts, where)
    if facts.writes_text:
        return _writer(facts, where)
    if facts.adapter:
        return "\n".join(["from peft import AutoPeftModel", "", f"model = AutoPeftModel.from_pretrained({where})"])
    return "\n".join(["from transformers import AutoModel", "", f"model = AutoModel.from_pretrained({where})"])


def _writer(facts: ModelFacts, where: str) -> str:
    plain = facts.info.get("conversational") is False  # trained without the template that the tokenizer may have
    chats = has_chat_template(facts.folder) and not plain
    prompt = (
        [
            'messages = [{"role": "user", "content": "What is a gradient?"}]',
            "inputs = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True',
            ")",
        ]
        if chats
        else ['inputs = tokenizer("What is a gradient?", return_tensors="pt")']
    )
    module, cls = ("peft", "AutoPeftModelForCausalLM") if facts.adapter else ("transformers", "AutoModelForCausalLM")
    imports = (
        [f"from peft import {cls}", "from transformers import AutoTokenizer"]
        if module == "peft"
        else [f"from transformers import {cls}, AutoTokenizer"]
    )
    return "\n".join(
        [
            *imports,
            "",
            f"model = {cls}.from_pretrained({where})",
            f"tokenizer = AutoTokenizer.from_pretrained({where})",
            *(["# It was trained on plain text: write prompts as the training data have them."] if plain else []),
            *prompt,
            "output = model.generate(**inputs, max_new_tokens=64)",
            'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
        ]
    )


def _classifier(facts: ModelFacts, where: str) -> str:
    cls = "AutoPeftModelForSequenceClassification" if facts.adapter else "AutoModelForSequenceClassification"
    imports = (
        [f"from peft import {cls}", "from transformers import AutoTokenizer"]
        if facts.adapter
        else [f"from transformers import {cls}, AutoTokenizer"]
    )
    return "\n".join(
        [
            *imports,
            "",
            f"model = {cls}.from_pretrained({where}{', num_labels=1' if facts.adapter else ''})",
            f"tokenizer = AutoTokenizer.from_pretrained({where})",
            'inputs = tokenizer("A question, and its answer.", return_tensors="pt")',
            "print(model(**inputs).logits[0, 0].item())  # higher is better",
        ]
    )


def has_chat_template(folder: Path) -> bool:
    """Return whether the tokenizer in a folder knows how to write conversations."""
    if (folder / "chat_template.jinja").is_file():
        return True
    config = folder / "tokenizer_config.json"
    return config.is_file() and '"chat_template"' in config.read_text(encoding="utf-8")
