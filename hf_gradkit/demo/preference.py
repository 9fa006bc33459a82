"""The preference chapter: a reward model, its margins, and DPO, MADPO and RPO on pairs whose true reward is known."""

import statistics
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..data.loading import load_split
from ..data.synthetic_pairs import prompts, true_reward
from ..reporting.figures import COLOURS, require_matplotlib
from ..reporting.runs import Run, read_run
from ..scoring.margins import add_reward_margins
from ..trainers.config import DPOConfig, RewardConfig, SFTConfig
from ..trainers.dpo_trainer import DPOTrainer
from ..trainers.reward_trainer import RewardTrainer
from ..trainers.sft_trainer import SFTTrainer
from .material import prepare_pairs as prepare
from .progress import one_bar, train

SFT_STEPS, REWARD_STEPS, STEPS, EVERY = 250, 240, 120, 20
SAMPLES, NEW_TOKENS = 16, 32  # completions of each of 24 prompts, and tokens of each
ARMS = {
    "dpo": {},
    "madpo": {"weighting": "madpo"},
    "rpo": {"loss_type": ["rpo"], "loss_kwargs": {"rpo": {"normalization": "average"}}},
}
CODE = """\
    from hf_gradkit import DPOConfig, DPOTrainer        # was: from trl import ...
    args = DPOConfig("out", weighting="madpo")          # or loss_type=["rpo"], or ["beta_dpo"]
    DPOTrainer("model", args=args, train_dataset=pairs_with_reward_margin).train()"""
SHARED = {
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 50,
    "max_length": 64,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 10,
    "logging_steps": 10,
    "save_strategy": "no",
    "report_to": "none",
    "bf16": False,
    "use_cpu": True,
    "activation_checkpointing": False,
}


def run(folder: Path) -> None:
    """Train policy, reward model and all arms in `folder`, draw the picture, and say what was seen."""
    require_matplotlib()
    one_bar()
    torch.set_num_threads(1)  # matrices this small lose more to handing work over than they gain
    torch.manual_seed(0)
    print(
        f"Making a tokenizer, a tiny Llama and preference pairs with a known true reward in {folder}/preference/ ..."
    )
    folder = prepare(folder)
    texts = load_split(str(folder / "data" / "sft.jsonl"), "train")
    pairs = {split: load_split(str(folder / "data" / f"{split}.jsonl"), "train") for split in ("train", "test")}
    print(f"\nThe policy to start from: SFT ({SFT_STEPS} steps)")
    _train(SFTTrainer, SFTConfig, folder / "model", folder / "policy", texts, SFT_STEPS, 3e-3)
    print(f"\nThe reward model, on the {len(pairs['train'])} pairs ({REWARD_STEPS} steps)")
    _train(RewardTrainer, RewardConfig, folder / "policy", folder / "reward", pairs["train"], REWARD_STEPS, 1e-3)
    scored = {
        split: add_reward_margins(
            rows, str(folder / "reward"), batch_size=64, cache_folder=folder / "scoring", device="cpu"
        )
        for split, rows in pairs.items()
    }
    for name, options in ARMS.items():
        print(f"\nFrom the same policy: {name} ({STEPS} steps)")
        _train_arm(folder, name, options, scored)
    rewards = {name: sample_rewards(folder / name) for name in ("policy", *ARMS)}
    runs = [read_run(folder / name) for name in ARMS]
    picture = folder / "preference.png"
    figure(runs, rewards).savefig(picture, dpi=130)
    print(summary(runs, rewards, scored))
    print(f"\nThe lines that did it:\n\n{CODE}\n")
    print(f"Picture: {picture}   (how likely chosen answers stay, and the true reward of what the policies write)")
    print(f"Next:    gradkit report {' '.join(str(folder / name) for name in ARMS)}")
    print("         gradkit recipes        (tiny/madpo does the same from YAMLs)")


def _train(trainer_class, config_class, model: Path, output: Path, rows, steps: int, rate: float) -> None:
    args = config_class(output_dir=str(output), max_steps=steps, learning_rate=rate, **SHARED)
    trainer = trainer_class(str(model), args=args, train_dataset=rows)
    train(trainer)
    trainer.save_model()


def _train_arm(folder: Path, name: str, options: dict, pairs: dict[str, Dataset]) -> None:
    args = DPOConfig(
        output_dir=str(folder / name),
        max_steps=STEPS,
        learning_rate=1e-3,
        eval_strategy="steps",
        eval_steps=EVERY,
        eval_on_start=True,
        precompute_ref_log_probs=True,
        **SHARED,
        **options,
    )
    columns = ["prompt", "chosen", "rejected", "reward_margin"]
    rows = {split: dataset.select_columns(columns) for split, dataset in pairs.items()}
    trainer = DPOTrainer(str(folder / "policy"), args=args, train_dataset=rows["train"], eval_dataset=rows["test"])
    train(trainer)
    trainer.save_model()
    trainer.save_state()


@torch.no_grad()
def sample_rewards(folder: Path) -> list[float]:
    """Return the true reward of completions that a policy writes to prompts it has not been trained on."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = prompts("test") * SAMPLES
    batch = tokenizer(asked, return_tensors="pt", padding=True, padding_side="left")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)  # the same random numbers for every policy
        ids = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=NEW_TOKENS,
            do_sample=True,
            top_k=0,
            pad_token_id=tokenizer.pad_token_id,
        )
    answers = tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [true_reward(prompt, answer) for prompt, answer in zip(asked, answers, strict=True)]


def drift(run: Run) -> tuple[list[int], list[float]]:
    """Return how far the log-probability of the test pairs' chosen answers has moved since step 0, in nats."""
    steps, values = run.series("eval_logps/chosen")
    return steps, [value - values[0] for value in values]


def summary(runs: list[Run], rewards: dict[str, list[float]], pairs: dict[str, Dataset]) -> str:
    """Return what the runs show, in a few lines and without claiming more than they do."""
    agreement = {split: statistics.fmean(m > 0 for m in rows["reward_margin"]) for split, rows in pairs.items()}
    right = statistics.fmean(m > 0 for m in pairs["train"]["true_margin"])
    madpo = next(run for run in runs if run.name == "madpo")
    lines = [
        "",
        f"{right:.0%} of the training labels are as the true reward has it; the others are noise.",
        f"The reward model agrees with {agreement['train']:.0%} of the labels it was trained on and with "
        f"{agreement['test']:.0%} of others.",
        f"Its margins were divided by the fitted temperature {madpo.last('margins/temperature'):.2f}; the mean weight "
        f"was {statistics.fmean(madpo.series('weights/mean')[1]):.2f}.",
        "",
        f"{'':<10}{'true reward':>16}{'chosen drift':>16}{'test pairs right':>20}",
    ]
    for name, values in rewards.items():
        error = statistics.stdev(values) / len(values) ** 0.5
        row = f"{'start' if name == 'policy' else name:<10}{statistics.fmean(values):>9.2f} +- {error:.2f}"
        run = next((run for run in runs if run.name == name), None)
        if run is not None:
            row += f"{drift(run)[1][-1]:>16.1f}{run.last('eval_rewards/accuracies'):>20.0%}"
        lines.append(row)
    return "\n".join(
        [
            *lines,
            "",
            f"true reward: mean of {len(rewards['policy'])} sampled completions, with its standard error.",
            "chosen drift: change of the chosen test answers' log-probability, nats; below 0 they became less likely.",
            "RPO is Regularized Preference Optimization (arXiv 2405.16436), its average form.",
            "(One seed, one tiny model, nothing tuned: a demonstration. docs/results/preference.md is the study.)",
        ]
    )


def figure(runs: list[Run], rewards: dict[str, list[float]]):
    """Draw the drift of the chosen answers over training, and the true rewards."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(10.4, 3.6), layout="constrained")
    left, right = drawn.subplots(1, 2)
    left.set_title("log-probability of chosen test answers, from the start")
    left.set_xlabel("optimizer step")
    left.set_ylabel("nats an answer")
    for run, colour in zip(runs, COLOURS, strict=False):
        left.plot(*drift(run), color=colour, label=run.name)
    left.legend(frameon=False)
    right.set_title("true reward of what the policies write")
    means = {name: statistics.fmean(values) for name, values in rewards.items()}
    errors = [statistics.stdev(values) / len(values) ** 0.5 for values in rewards.values()]
    names = ["start" if name == "policy" else name for name in means]
    colours = [COLOURS[5], *COLOURS[: len(runs)]]
    right.bar(names, list(means.values()), yerr=errors, capsize=3, color=colours)
    for axis in (left, right):
        axis.axhline(0, color=COLOURS[5], linewidth=0.8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, axis="y")
    return drawn
