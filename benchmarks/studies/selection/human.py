"""Experiment 3: DPO on a part of human preferences (hh_harmless), judged by a reward model that chose nothing.

python human.py --data hh_harmless.jsonl.gz --output OUT       runs what is not there yet
python human.py --data hh_harmless.jsonl.gz --output OUT --summary FOLDER
"""

import argparse
import statistics
from pathlib import Path

import torch
from arms import SEEDS, keep, names, use
from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

use("hh_harmless")
from data import write_rows  # noqa: E402
from measure import BETA, log_probs, measure, read_rows  # noqa: E402
from world import LONGEST, PLAIN, REWARD, SFT, gradkit, make_data, make_world  # noqa: E402

use("reweighting")
from common import load_all, mean_and_interval, paired, run_all, show, write_json  # noqa: E402

from hf_gradkit.data.tiny import tiny_llama  # noqa: E402

FRACTIONS = [0.1, 0.25, 0.5]
STEPS = 120
DPO = {"max_steps": STEPS, "learning_rate": 2e-4, "warmup_steps": 10, "beta": BETA}
NEW_TOKENS, PROMPTS = 48, 200
JUDGE = {"hidden_size": 96, "layers": 3}


def make_judge(data: Path, folder: Path) -> Path:
    """Train the judge, once for all seeds: wider, deeper, otherwise initialised, and on the held-out pairs as well.

    It shares the training pairs with the proxies, and so their labels' errors, but not their weights.
    """
    if not (folder / "done").exists():
        tokenizer = AutoTokenizer.from_pretrained(data / "tokenizer")
        tiny_llama(tokenizer, **JUDGE, max_length=LONGEST, seed=999).save_pretrained(folder / "start")
        tokenizer.save_pretrained(folder / "start")
        common = {"seed": 999, **PLAIN}
        gradkit("sft", model_name_or_path=folder / "start", dataset_name=data / "sft.jsonl",
                output_dir=folder / "policy", **common, **SFT)  # fmt: skip
        write_rows(folder / "all.jsonl", read_rows(data / "train.jsonl") + read_rows(data / "held_out.jsonl"))
        gradkit("reward", model_name_or_path=folder / "policy", dataset_name=folder / "all.jsonl",
                output_dir=folder / "judge", **common, **REWARD)  # fmt: skip
        (folder / "done").touch()
    return folder / "judge"


@torch.no_grad()
def write_answers(policy: Path, prompts: list[str]) -> list[list[int]]:
    """Return what a policy writes to each prompt, as tokens, with the same random numbers for all policies."""
    tokenizer = AutoTokenizer.from_pretrained(policy)
    tokenizer.padding_side = "left"
    model = AutoModelForCausalLM.from_pretrained(policy).eval()
    found = []
    torch.manual_seed(12345)
    for begin in range(0, len(prompts), 50):
        batch = tokenizer(prompts[begin : begin + 50], return_tensors="pt", padding=True)
        batch.pop("token_type_ids", None)
        ids = model.generate(**batch, max_new_tokens=NEW_TOKENS, do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
        found += ids[:, batch["input_ids"].shape[1] :].tolist()
    return found


@torch.no_grad()
def rewards(judge: Path, prompts: list[str], answers: list[list[int]]) -> list[float]:
    """Return the judge's reward of each answer."""
    tokenizer = AutoTokenizer.from_pretrained(judge)
    scorer = AutoModelForSequenceClassification.from_pretrained(judge).eval()
    found = []
    for prompt, answer in zip(prompts, tokenizer.batch_decode(answers, skip_special_tokens=True), strict=True):
        text = tokenizer(prompt + answer + tokenizer.eos_token, return_tensors="pt")["input_ids"]
        found.append(float(scorer(input_ids=text[:, -LONGEST:], use_cache=False).logits[0, 0]))
    return found


def judged(policy: Path, judge: Path, prompts: list[str]) -> float:
    """Return the judge's mean reward of what a policy writes."""
    return statistics.fmean(rewards(judge, prompts, write_answers(policy, prompts)))


def run(seed: int, arm: str, output: Path) -> dict:
    """Train one arm from the seed's policy, and measure it on held-out pairs and prompts."""
    data, world = output / "data", output / f"seed{seed}"
    make_world(seed, data, world)
    judge = make_judge(data, output / "judge")
    scored = load_dataset("parquet", data_files=str(world / "scores" / "cross_fitted" / "scored.parquet"))["train"]
    pairs = scored.select_columns(["prompt", "chosen", "rejected"]).add_column("cross_fitted", scored["reward_margin"])
    kept, report = keep(arm, pairs, world / "policy", seed, output / "cache")
    folder = world / "arms" / arm
    Dataset.to_parquet(kept.remove_columns("cross_fitted"), str(world / f"{arm}.parquet"))
    gradkit(
        "dpo", seed=seed, model_name_or_path=world / "policy", dataset_name=world / f"{arm}.parquet",
        output_dir=folder, precompute_ref_log_probs=True, precompute_ref_batch_size=16, **DPO, **PLAIN,
    )  # fmt: skip
    held_out = read_rows(data / "held_out.jsonl")
    result = measure(folder, log_probs(world / "policy", held_out), held_out)
    prompts = [row["prompt"] for row in held_out[:PROMPTS]]
    return {
        **result,
        "judge": judged(folder, judge, prompts),
        "judge_of_reference": judged(world / "policy", judge, prompts),
        "kept": len(kept),
        "margin_and_length": report.get("margin_and_length"),
    }


def summarise(results: dict[str, dict[int, dict]], folder: Path) -> None:
    """Print the judge's reward and the held-out accuracy, and their differences to all pairs and to random."""
    table: dict[str, dict] = {}
    for figure in ("judge", "accuracy"):
        values = {arm: {seed: r[figure] for seed, r in of_seed.items()} for arm, of_seed in results.items()}
        for arm, of_seed in values.items():
            twin = "full" if arm == "full" else f"random-{arm.rpartition('-')[2]}"
            row = {"mean": mean_and_interval(list(of_seed.values())), "to_full": paired(of_seed, values["full"]),
                   "to_random": paired(of_seed, values[twin])}  # fmt: skip
            table.setdefault(arm, {})[figure] = row
            found = [r["margin_and_length"]["spearman"] for r in results[arm].values() if r["margin_and_length"]]
            if found:
                table[arm]["margin_and_length"] = mean_and_interval(found)
            print(f"{figure:9}{arm:18}{show(row['mean'])}  to full {show(row['to_full'])}  "
                  f"to random {show(row['to_random'])}")  # fmt: skip
    before = mean_and_interval([r["judge_of_reference"] for r in results["full"].values()])
    write_json(folder / "human.json", {"judge_of_reference": before, "arms": table})


def main() -> None:
    """Run the arms that are not there yet, or sum them up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--arms", nargs="+", default=names(FRACTIONS), choices=names(FRACTIONS))
    parser.add_argument("--summary", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    arms = dict.fromkeys(args.arms)
    if args.summary:
        summarise(load_all(args.output, args.seeds, arms), args.summary)
        return
    make_data(args.data, args.output / "data")
    run_all(args.output, args.seeds, arms, lambda seed, arm: run(seed, arm, args.output))


if __name__ == "__main__":
    main()
