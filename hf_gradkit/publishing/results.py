"""The figures of a page: what the run measured in the end, as a table and as the Hub's evaluation results."""

import math
from typing import TYPE_CHECKING, Any

from .facts import ModelFacts

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

# Of evaluation logs: what a clock or a counter says.
NO_RESULTS = ("runtime", "per_second", "num_tokens", "model_preparation_time")
# Figures that describe a model and do not judge it: on the page, and not among the Hub's results.
DESCRIPTIVE = (
    "logps/",
    "logits/",
    "rewards/chosen",
    "rewards/rejected",
    "entropy",
    "min_reward",
    "mean_reward",
    "max_reward",
)
NAMES = {
    "loss": "Loss",
    "accuracy": "Accuracy",
    "mean_token_accuracy": "Share of tokens predicted right",
    "rewards/accuracies": "Share of pairs ordered as labelled",
    "rewards/margins": "Implicit reward margin",
    "margin": "Reward margin",
}


def evaluation(facts: ModelFacts) -> tuple[int, dict[str, float]] | None:
    """Return the step and the figures of the evaluation of the weights that are in the folder, or None.

    That is the last one, or that of the best step where the best weights were loaded in the end.
    """
    logs = [entry for entry in facts.run.history if any(key.startswith("eval_") for key in entry)]
    if facts.progress.best_step is not None:
        logs = [entry for entry in logs if entry.get("step") == facts.progress.best_step]
    if not logs:
        return None
    step, figures = logs[-1].get("step", 0), {}
    for entry in logs:
        if entry.get("step", 0) == step:  # several evaluation sets are logged one by one
            figures |= {key[len("eval_") :]: value for key, value in entry.items() if _is_result(key, value)}
    return step, figures


def _is_result(key: str, value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return key.startswith("eval_") and number and not any(part in key for part in NO_RESULTS)


def last_training_log(facts: ModelFacts) -> dict[str, float]:
    """Return the last figures that training logged, with the step."""
    return next((entry for entry in reversed(facts.run.history) if "loss" in entry and "grad_norm" in entry), {})


def eval_results(facts: ModelFacts) -> "list[EvalResult]":
    """Return the evaluation as the Hub's metadata has it; figures that are not finite are left to the page."""
    from huggingface_hub import EvalResult

    found = evaluation(facts)
    if found is None:
        return []
    of_eval = facts.data("eval")
    data = of_eval[0] if of_eval else {}
    hub = facts.hub_data("eval")
    name = str(data.get("name", "")).rstrip("/").rpartition("/")[2] if not hub else hub[0]
    task, words = ("text-classification", "Reward") if facts.is_classifier else ("text-generation", "Text Generation")
    return [
        EvalResult(
            task_type=task,
            task_name=words,
            dataset_type=hub[0] if hub else "local",
            dataset_name=name or "the run's evaluation data",
            dataset_config=data.get("config") if hub else None,
            dataset_split=data.get("split") if hub else None,
            metric_type=key,
            metric_name=NAMES.get(key, key),
            metric_value=round(float(value), 6),
        )
        for key, value in found[1].items()
        if math.isfinite(value) and not key.startswith(DESCRIPTIVE)
    ]
