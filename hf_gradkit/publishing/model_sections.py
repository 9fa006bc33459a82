"""The sections of a model's page. Each function returns Markdown, or "" where there is nothing to say."""

from collections.abc import Callable
from typing import Any

import yaml

from ..reporting.consistency import rows_between_workers
from .facts import ModelFacts
from .methods import TASKS
from .papers import CONSISTENCY, DPO, ENTANGLEMENT, Paper
from .results import NAMES, evaluation, last_training_log
from .sources import made_by_us
from .usage import snippet
from .words import code, command_without_paths, number, table, value_of, without_paths

# Settings that say where things lie on a machine or how they are printed, and nothing of the model.
NO_SETTINGS = (
    *("output_dir", "logging_", "run_name", "report_to", "disable_tqdm", "log_level", "resume_from", "use_cpu"),
    *("hub_", "push_to_hub", "save_", "trackio", "project", "overwrite", "dataloader_", "accelerator_config", "do_"),
)


def summary(facts: ModelFacts) -> str:
    """What it is: base, task, method, data, and how far its training is."""
    task = TASKS[facts.trainer][0] if facts.trainer else "training"
    names = [method.name for method in facts.methods]
    by = f" by {task}" + (f" ({', '.join(f'`{name}`' for name in names)})" if names else "")
    base = facts.base.describe()
    if facts.info:
        words = [f"This is {'an adapter of ' * bool(facts.adapter)}{base}, changed{by} with hf_gradkit."]
    else:
        words = [f"{_what_it_is(facts)} hf_gradkit made this page, and knows of no training of its own."]
    if facts.progress.step and not facts.progress.ended:
        words.append(
            f"**Its training is not over: this is step {facts.progress.step} of {facts.progress.max_steps}.**"
        )
    return " ".join(words)


def _what_it_is(facts: ModelFacts) -> str:
    """Return what the files say of a model whose training was not ours."""
    base = facts.base.describe() if facts.base.given else None
    if facts.adapter:
        return f"This is an adapter of {base or 'a model that it does not name'}."
    trained = bool(facts.progress.step or facts.run.history)
    if base:
        return f"This is {base}{', changed by training' * trained}."
    return f"This is a {'trained ' * trained}model whose origin was not recorded."


def data(facts: ModelFacts) -> str:
    """Which data it was trained on, as far as it is known."""
    rows = [_dataset(entry, facts) for entry in [*facts.data("train"), *facts.data("eval")]]
    count = facts.info.get("rows")
    said = []
    if not facts.data("train"):
        said.append("The name of the training data was not recorded.")
    if count:
        packed = "packed " if facts.settings.get("packing") else ""
        said.append(f"It had {count} {packed}rows when the training began.")
    if facts.settings.get("hold_out_fraction"):
        share = number(100 * facts.settings["hold_out_fraction"])
        said.append(f"{share} % of the rows had been held out at random before, and were not trained on.")
    lines = [f"- {row}" for row in rows]
    return _section("Data", "\n".join([*lines, *([""] if lines else []), " ".join(said)]))


def _dataset(entry: dict[str, Any], facts: ModelFacts) -> str:
    name = entry["name"]
    if name in facts.hub_data(entry["role"]):
        shown = f"[{name}](https://huggingface.co/datasets/{name})"
    else:
        shown = f"a local file, `{name.rstrip('/').rpartition('/')[2]}`"
        made = made_by_us(name)
        shown += f" ({made[0]})" if made else ""
    parts = [f"{words} `{entry[key]}`" for key, words in _DATA_WORDS.items() if entry.get(key)]
    return f"{'Training' if entry['role'] == 'train' else 'Evaluation'}: {', '.join([shown, *parts])}"


_DATA_WORDS = {"config": "configuration", "split": "split", "revision": "commit"}


def use(facts: ModelFacts) -> str:
    """How to load it and run it."""
    lines = [code(snippet(facts), "python")]
    if facts.adapter and facts.base.steps:
        name = facts.adapter.get("base_model_name_or_path")
        lines.append(
            f"The adapter names `{without_paths(str(name))}` as its base, which is a folder on the machine that it "
            "was trained on: it runs only where that model is."
        )
    return _section("Use it", "\n\n".join(lines))


def method(facts: ModelFacts) -> str:
    """What it was trained by, with papers and options."""
    lines = []
    for of in facts.methods:
        paper = f" {of.paper.link}." if of.paper else ""
        options = ", ".join(f"{name} {value_of(value)}" for name, value in of.options.items() if value is not None)
        lines.append(f"- **`{of.name}`**: {of.text}{paper}{f' Options: {options}.' if options else ''}")
    if not lines:
        task = TASKS[facts.trainer][0] if facts.trainer else None
        lines = [f"Plain {task}: no method of hf_gradkit was on." if task else "How it was trained was not recorded."]
    if facts.adapter:
        lines += ["", _adapter(facts.adapter)]
    return _section("Method", "\n".join(lines))


def _adapter(config: dict[str, Any]) -> str:
    shown = {"rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout"}
    parts = [f"{words} {config[key]}" for words, key in shown.items() if config.get(key) is not None]
    modules = config.get("target_modules")
    on = f", on {', '.join(f'`{name}`' for name in sorted(modules))}" if isinstance(modules, list) else ""
    kind = str(config.get("peft_type", "PEFT"))
    return f"{'LoRA' if kind == 'LORA' else kind} adapter: {', '.join(parts)}{on}."


def results(facts: ModelFacts) -> str:
    """What was measured in the end."""
    found, trained = evaluation(facts), last_training_log(facts)
    parts = []
    if found is not None:
        rows = [[NAMES.get(key, key), number(value)] for key, value in found[1].items()]
        best = " (the best step, whose weights these are)" if facts.progress.best_step is not None else ""
        parts += [f"Evaluation at step {found[0]}{best}:", table(["figure", "value"], rows)]
    elif facts.info or facts.run.history:
        parts.append("The run did not evaluate: there is no figure of examples that it was not trained on.")
    else:
        parts.append("No figures were recorded beside the model.")
    if trained:
        keys = ("loss", "loss/unweighted", "rewards/accuracies", "logps/chosen_drift", "weights/ess", "accuracy")
        shown = [f"{key} {number(trained[key])}" for key in keys if key in trained]
        parts.append(f"Training, last log (step {trained.get('step')}): {', '.join(shown)}.")
    return _section("Results", "\n\n".join(parts))


def plots(drawn: list[tuple[str, str, str]]) -> str:
    """The pictures."""
    parts = [f"### {title}\n\n![{title}]({path})\n\n{text}" for title, text, path in drawn]
    return _section("The run in pictures", "\n\n".join(parts)) if parts else ""


OUTCOMES = {
    "ideal": "the chosen answer rises and the rejected one falls",
    "both_fall": "both fall",
    "both_rise": "both rise",
}


def entanglement(facts: ModelFacts) -> str:
    """How the chosen and the rejected answers' gradients hung together."""
    logged = [entry for entry in facts.run.history if "entanglement/ideal" in entry]
    lines = []
    if logged:
        shares = {
            words: sum(entry.get(f"entanglement/{key}", 0.0) for entry in logged) / len(logged)
            for key, words in OUTCOMES.items()
        }
        said = ", ".join(f"in {share:.0%} {words}" for words, share in shares.items())
        lines.append(
            "What one small step on a pair does to the log-probabilities of its answers, of the monitored pairs, mean "
            f"of {len(logged)} logs: {said}. {ENTANGLEMENT.link}."
        )
    drift = facts.run.last("logps/chosen_drift"), facts.run.last("logps/rejected_drift")
    if None not in drift:
        lines.append(
            f"In the end the log-probability of the chosen answers was {drift[0]:+.2f} nats from the reference's, "
            f"that of the rejected ones {drift[1]:+.2f}."
        )
    return _section("Gradient entanglement" if logged else "Drift of log-probabilities", "\n\n".join(lines))


def consistency(facts: ModelFacts) -> str:
    """Whether the workers trained on the same thing."""
    ratios = {
        "loss dispersion": facts.run.last("consistency/loss_dispersion_ratio"),
        "dispersion of gradient norms": facts.run.last("consistency/grad_norm_dispersion_ratio"),
        "cosine of the workers' gradients": facts.run.last("consistency/direction_ratio"),
    }
    known = [f"{words} {number(ratio)}" for words, ratio in ratios.items() if ratio is not None]
    if not known:
        return ""
    rows = rows_between_workers(facts.run)
    missing = f"; that none saw: {number(rows['missing'])}" if "missing" in rows else ""
    text = (
        f"{facts.info.get('processes', 'Several')} workers were compared; beside a healthy run, which has 1: "
        f"{', '.join(known)}. Rows that several workers saw in one epoch: {number(rows.get('repeated', 0))}{missing}. "
        f"{CONSISTENCY.link}."
    )
    return _section("Consistency of workers", text)


def privacy(facts: ModelFacts) -> str:
    """What an audit found, in figures alone."""
    if facts.audit is None:
        text = "No privacy audit was made: what the model gives away about its training data is not known."
        return _section("Privacy audit", text)
    stale = "**The audit was of other weights than these.** It does not speak for them."
    return facts.audit.section.strip() + (f"\n\n{stale}" if facts.audit.of_these_weights is False else "")


def settings(facts: ModelFacts) -> str:
    """The settings that differ from the defaults, processes and versions."""
    rows = [[f"`{name}`", f"`{value_of(value)}`"] for name, value in facts.settings.items() if _tells(name, value)]
    parts = [table(["setting that differs from its default", "value"], rows)] if rows else []
    if facts.info.get("processes"):
        parts.append(f"Processes: {facts.info['processes']} ({facts.info.get('distributed_type', '')}).")
    versions = [[name, version] for name, version in (facts.info.get("versions") or {}).items() if version]
    parts += [table(["library", "version"], versions)] if versions else []
    return _section("Settings and versions", "\n\n".join(parts))


def _tells(name: str, value: Any) -> bool:
    return value not in ([], {}, "") and not name.startswith(NO_SETTINGS)


def reproduce(facts: ModelFacts) -> str:
    """The command and its file."""
    parts = []
    if facts.info.get("command"):
        parts.append(code(command_without_paths(facts.info["command"])))
    if facts.info.get("config"):
        parts += [
            "with this file:",
            code(without_paths(yaml.safe_dump(facts.info["config"], sort_keys=False)), "yaml"),
        ]
    return _section("Run it again", "\n\n".join(parts))


def citations(facts: ModelFacts) -> str:
    """The bibliography."""
    papers: list[Paper] = [of.paper for of in facts.methods if of.paper is not None]
    if facts.trainer == "DPOTrainer":
        papers.insert(0, DPO)
    for prefix, paper in (("entanglement/", ENTANGLEMENT), ("consistency/", CONSISTENCY)):
        if any(key.startswith(prefix) for entry in facts.run.history for key in entry):
            papers.append(paper)
    entries = [paper.bibtex for paper in dict.fromkeys(papers)]
    return _section("Citations", code("\n\n".join(entries), "bibtex") if entries else "")


def sections(facts: ModelFacts, drawn: list[tuple[str, str, str]]) -> list[str]:
    """Return all sections of a page that have something to say, in order."""
    before: tuple[Callable[[ModelFacts], str], ...] = (summary, use, data, method, results)
    after = (entanglement, consistency, privacy, settings, reproduce, citations)
    parts = [*(of(facts) for of in before), plots(drawn), *(of(facts) for of in after)]
    return [part for part in parts if part]


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text.strip()}" if text.strip() else ""
