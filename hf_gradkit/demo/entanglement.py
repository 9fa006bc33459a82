"""The entanglement chapter: TRL's DPO, unchanged, lowers the chosen answers; who says so in time, and one remedy."""

import statistics
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import trl
from datasets import Dataset

from ..callbacks.entanglement import EntanglementCallback
from ..data.loading import load_split
from ..reporting.entanglement import entanglement_figure, read_entanglement
from ..reporting.figures import COLOURS, require_matplotlib
from ..reporting.runs import Run, read_run
from ..trainers.config import DPOConfig
from ..trainers.dpo_trainer import DPOTrainer
from .material import prepare_edits as prepare
from .overhead import WARM_UP, Clock, cost_in_words
from .preference import SHARED, sample_rewards
from .progress import held_back, one_bar, train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SFT_STEPS, STEPS, TIMED_STEPS, PAIRS_A_STEP, BETA = 150, 60, 42, 16, 0.1
# Plain gradient steps, of which the prediction is; Adam's are rescaled coordinate by coordinate.
OPTIONS = {
    **SHARED,
    "per_device_train_batch_size": PAIRS_A_STEP,
    "optim": "sgd",
    "learning_rate": 0.15,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "beta": BETA,
}
# The pairs share all tokens but one word, so cosines are near 1 and a balance of the two pulls leaves little: a pull
# on the chosen answer alone is what acts against it. The average form, because the answers are short.
REMEDY = {"loss_type": ["rpo"], "loss_kwargs": {"rpo": {"normalization": "average"}}}
REMEDY_CODE = 'DPOConfig(..., loss_type=["rpo"], loss_kwargs={"rpo": {"normalization": "average"}})'
HEADER = f"{'step':>6}{'reward margin':>15}{'chosen':>9}{'rejected':>10}{'chosen falls: predicted':>26}{'seen':>7}"
RUNS = {"dpo": "TRL's DPO", "rpo": "RPO"}


def run(folder: Path) -> None:
    """Train with TRL's DPO and with the remedy in `folder`, time the monitor, and say what was seen."""
    require_matplotlib()
    one_bar()
    torch.set_num_threads(1)  # matrices this small lose more to handing work over than they gain
    torch.manual_seed(0)
    print(f"Making a tokenizer, a tiny Llama and pairs that differ in one word in {folder}/entanglement/ ...")
    folder = prepare(folder)
    pairs = {split: load_split(str(folder / "data" / f"{split}.jsonl"), "train") for split in ("train", "test")}
    pairs = {split: rows.select_columns(["prompt", "chosen", "rejected"]) for split, rows in pairs.items()}
    print(f"\nThe policy to start from: SFT ({SFT_STEPS} steps)")
    _train_policy(folder)
    print(f"\ntrl.DPOTrainer, unchanged, {STEPS} steps, watched by EntanglementCallback")
    print("chosen, rejected: log-probability since the start, nats. predicted: before the step; seen: after it\n")
    warned = _train_arm(trl.DPOTrainer, trl.DPOConfig, folder, "dpo", {}, pairs)
    for message in warned:
        print("\n" + textwrap.fill(f"The monitor warned: {message}", 110))
    print(f"\nFrom the same policy, one line changed: {REMEDY_CODE}\n")
    _train_arm(DPOTrainer, DPOConfig, folder, "rpo", REMEDY, pairs)
    print(f"\nWhat watching costs: {TIMED_STEPS} more steps of trl.DPOTrainer, every second one watched")
    times = time_steps(folder, pairs["train"])
    rewards = {name: sample_rewards(folder / name) for name in ("policy", *RUNS)}
    runs = {name: read_run(folder / name) for name in RUNS}
    picture = folder / "entanglement.png"
    figure(list(runs.values())).savefig(picture, dpi=130)
    print(summary(runs, rewards, times))
    print("\nIn your own TRL script:\n")
    print("    from hf_gradkit import EntanglementCallback")
    print("    trainer.add_callback(EntanglementCallback())\n")
    print(f"Output:  {folder}/   Picture: {picture}")
    print(f"Next:    gradkit report {' '.join(str(folder / name) for name in RUNS)}")
    print("         gradkit demo preference        (or reweighting: the other chapters)")


def _train_policy(folder: Path) -> None:
    args = trl.SFTConfig(output_dir=str(folder / "policy"), max_steps=SFT_STEPS, learning_rate=3e-3, **SHARED)
    rows = load_split(str(folder / "data" / "sft.jsonl"), "train")
    trainer = trl.SFTTrainer(str(folder / "model"), args=args, train_dataset=rows)
    train(trainer)
    trainer.save_model()


def _train_arm(
    trainer_class: type[trl.DPOTrainer],
    config_class: type[trl.DPOConfig],
    folder: Path,
    name: str,
    options: dict[str, Any],
    pairs: dict[str, Dataset],
) -> list[str]:
    """Train one arm, evaluate and save it; return the monitor's warnings."""
    args = config_class(output_dir=str(folder / name), max_steps=STEPS, **OPTIONS, **options)
    data = {"train_dataset": pairs["train"], "eval_dataset": pairs["test"]}
    trainer = trainer_class(str(folder / "policy"), args=args, **data)
    # The whole batch's step, and one more forward after it to check: more than the plain EntanglementCallback() does.
    trainer.add_callback(EntanglementCallback(direction="step", observe=True, trainer=trainer))
    print(HEADER)
    with held_back("hf_gradkit.callbacks.entanglement") as warned:
        train(trainer, live_line)
    trainer.evaluate()
    trainer.save_model()
    trainer.save_state()
    return warned


def live_line(step: int, logs: dict[str, Any]) -> str:
    """Return a line of the live table. TRL's rewards are beta times the log-probability since the start."""
    falls = [1 - logs[f"entanglement/{name}"] for name in ("chosen_rises", "observed_chosen_rises")]
    return (
        f"{step:>6}{logs['rewards/margins']:>+15.3f}{logs['rewards/chosen'] / BETA:>+9.2f}"
        f"{logs['rewards/rejected'] / BETA:>+10.2f}{falls[0]:>26.0%}{falls[1]:>7.0%}"
    )


def time_steps(folder: Path, pairs: Dataset) -> list[float]:
    """Return the times of TRL's steps, the plain and the watched in turn, plain first; seconds."""
    steps = TIMED_STEPS + WARM_UP
    args = trl.DPOConfig(output_dir=str(folder / "timed"), max_steps=steps, **OPTIONS | {"logging_strategy": "no"})
    trainer = trl.DPOTrainer(str(folder / "policy"), args=args, train_dataset=pairs)
    clock = Clock()
    trainer.add_callback(EntanglementCallback(monitor_steps=2))  # the first step, the third, ...
    trainer.add_callback(clock)
    with held_back("hf_gradkit.callbacks.entanglement"):
        train(trainer)
    return clock.times[WARM_UP - 1 :]  # the clock starts at the end of the first step, and WARM_UP is odd


def shares(folder: Path) -> dict[str, float]:
    """Return the means over the watched steps of what was predicted, what was seen, and how often that agreed."""
    lines = read_entanglement(folder)
    names = ("chosen_rises", "observed_chosen_rises", "agreement")
    keys = {name: f"entanglement/{name}" for name in names}  # a step that moved nothing has no agreement
    return {name: statistics.fmean(line[key] for line in lines if key in line) for name, key in keys.items()}


def summary(runs: dict[str, Run], rewards: dict[str, list[float]], times: list[float]) -> str:
    """Return what the runs show, in a few lines and without claiming more than they do."""
    figures = {name: outcome(run) for name, run in runs.items()}
    lines = ["", f"{'':<12}{'reward margin':>16}{'pairs right':>14}{'chosen drift':>15}{'true reward':>18}"]
    for name, values in rewards.items():
        row = f"{RUNS.get(name, 'start'):<12}"
        if name in figures:
            margin, right, drift = figures[name].values()
            row += f"{margin:>+16.3f}{right:>14.0%}{drift:>+15.2f}"
        else:
            row += " " * 45
        lines.append(f"{row}{statistics.fmean(values):>+10.2f} +- {_error(values):.2f}")
    said = [watched(runs["dpo"]), effect(figures["dpo"]), remedy(figures, rewards)]
    cost = (
        f"A watched step took {cost_in_words(times)}, on a tiny model with short answers; monitor_steps=10 "
        "is a tenth of the extra. docs/entanglement.md has a larger model."
    )
    notes = [
        "Margin, pairs right and chosen drift (nats) are on test pairs; true reward: of sampled answers, as the data "
        "knows it, with its standard error. The optimizer is SGD, whose steps are what is predicted; with Adam the "
        "signs agree less often. One seed and one tiny model, data and learning rate chosen to show the effect within "
        "a minute: a demonstration.",
    ]
    paragraphs = [textwrap.fill(text, 110) for text in (*said, cost, *notes)]
    return "\n".join([*lines, "", "\n\n".join(paragraphs)])


def outcome(run: Run) -> dict[str, float]:
    """Return how a run ended on the test pairs: reward margin, share of pairs ordered right, chosen drift in nats."""
    return {
        "reward margin": run.last("eval_rewards/margins"),
        "pairs right": run.last("eval_rewards/accuracies"),
        "chosen drift": run.last("eval_rewards/chosen") / BETA,
    }


def watched(dpo: Run) -> str:
    """Say for how many pairs of TRL's run a fall was predicted, and seen."""
    seen = shares(dpo.folder)
    total = len(read_entanglement(dpo.folder)) * PAIRS_A_STEP
    predicted, observed = (round(total * (1 - seen[name])) for name in ("chosen_rises", "observed_chosen_rises"))
    return (
        f"Of the {total} pairs that TRL's DPO trained on, the monitor said of {predicted}, before the step, that the "
        f"chosen answer would become less likely; after the step {observed} had. {seen['agreement']:.1%} of all "
        "answers, chosen and rejected, went where it said."
    )


def effect(dpo: dict[str, float]) -> str:
    """Say whether the margin hid a fall in TRL's run."""
    if dpo["reward margin"] > 0 > dpo["chosen drift"]:
        return (
            f"The reward margin rose and {dpo['pairs right']:.0%} of the test pairs are ordered right: it looks fine. "
            f"Yet the chosen answers lost {-dpo['chosen drift']:.2f} nats each."
        )
    return (
        "The effect did not occur in this run: the margin did not rise while the chosen answers fell "
        f"(margin {dpo['reward margin']:+.3f}, chosen {dpo['chosen drift']:+.2f} nats)."
    )


def remedy(figures: dict[str, dict[str, float]], rewards: dict[str, list[float]]) -> str:
    """Say what the changed line bought and what it cost, by the signs of the differences."""
    before, after = figures["dpo"], figures["rpo"]
    parts: dict[str, list[str]] = {"bought": [], "cost": []}
    for name, form in (("chosen drift", "+.2f"), ("reward margin", "+.3f"), ("pairs right", ".0%")):
        what = f"{name} {before[name]:{form}} -> {after[name]:{form}}"
        if after[name] != before[name]:
            parts["bought" if after[name] > before[name] else "cost"].append(what)
    means = [statistics.fmean(rewards[name]) for name in ("dpo", "rpo")]
    what = f"true reward {means[0]:+.2f} -> {means[1]:+.2f}"
    if abs(means[1] - means[0]) > 2 * (_error(rewards["dpo"]) ** 2 + _error(rewards["rpo"]) ** 2) ** 0.5:
        parts["bought" if means[1] > means[0] else "cost"].append(what)
    else:
        what += " is within the noise"
        parts["neither"] = [what]
    return "The changed line. " + " ".join(
        f"{name.capitalize()}: {', '.join(found) if found else 'nothing'}." for name, found in parts.items()
    )


def _error(values: list[float]) -> float:
    return statistics.stdev(values) / len(values) ** 0.5


def figure(runs: list[Run]) -> "Figure":
    """Draw what TRL logs, the monitor's own picture of the pairs, and what it predicted beside what came."""
    drawn = entanglement_figure(runs)
    drawn.set_size_inches(15.6, 3.8)
    grid = drawn.add_gridspec(1, 3)
    pairs, outcomes = drawn.axes
    pairs.set_subplotspec(grid[1])
    outcomes.remove()  # six lines; for two runs beside each other, the falls are enough
    left, right = drawn.add_subplot(grid[0]), drawn.add_subplot(grid[2])
    left.set_title("since the start, nats an answer")
    left.axhline(0, color=COLOURS[5], linewidth=0.8)
    right.set_title("share of pairs whose chosen answer falls in a step")
    right.set_ylim(0, 1.05)
    for run, colour in zip(runs, COLOURS, strict=False):
        for key, words, style in (("margins", "margin", "--"), ("chosen", "chosen log-prob", "-")):
            steps, values = run.series(f"rewards/{key}")
            label = f"{RUNS[run.name]}: {words}"
            left.plot(steps, [v / BETA for v in values], linestyle=style, color=colour, label=label)
        for key, words, style in (("chosen", "predicted", "-"), ("observed_chosen", "seen after it", ":")):
            steps, values = run.series(f"entanglement/{key}_rises")
            label = f"{RUNS[run.name]}: {words}"
            right.plot(steps, [1 - v for v in values], style, marker=".", color=colour, label=label)
    for axis in (left, right):
        axis.set_xlabel("optimizer step")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        axis.legend(frameon=False, fontsize=8)
    return drawn
