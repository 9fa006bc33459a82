"""Numbers and figures of the study: `python summarise.py --output OUT --summary FOLDER`."""

import argparse
import json
import math
import statistics
from pathlib import Path

from measure import read_rows
from run import ARMS, SEEDS, write_json

# Two-sided 95 % points of Student's t by degrees of freedom.
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}
FIGURES = ("loss", "accuracy", "chosen_drift", "rejected_drift")
PRIMARY = "madpo_cross_fitted"


def interval(values: list[float]) -> dict[str, float]:
    """Return the mean of independent values and its 95 % t-interval.

    >>> interval([1.0, 2.0, 3.0])["low"]
    -0.48...
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return {"mean": mean, "low": math.nan, "high": math.nan}
    half = T_95[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def summarise(output: Path, seeds: list[int]) -> dict:
    """Return means and paired differences to DPO, and what the reward models are like."""
    results = {
        arm: [json.loads((output / f"seed{seed}" / f"{arm}.json").read_text()) for seed in seeds] for arm in ARMS
    }
    worlds = [json.loads((output / f"seed{seed}" / "world.json").read_text()) for seed in seeds]
    held_out = read_rows(output / "data" / "held_out.jsonl")
    shorter = statistics.fmean(len(pair["chosen"]) < len(pair["rejected"]) for pair in held_out)
    arms = {}
    for arm, runs in results.items():
        arms[arm] = {
            "temperature": [run["margin_temperature"] for run in runs],
            "last_log": [run["logs"][-1] for run in runs],
            "weight_mean": _mean_log(runs, "weights/mean"),
            "weight_ess": _mean_log(runs, "weights/ess"),
            "seconds": [run["seconds"] for run in runs],
        }
        for part in ("held_out", "train"):
            arms[arm][part] = {name: interval([run[part][name] for run in runs]) for name in FIGURES}
            arms[arm][f"{part}_minus_dpo"] = {
                name: interval([a[part][name] - b[part][name] for a, b in zip(runs, results["dpo"], strict=True)])
                for name in FIGURES
            }
    scores = {
        name: {key: interval([world["scores"][name][key] for world in worlds])
               for key in ("agreement", "mean_margin", "std_margin", "temperature")
               if all(world["scores"][name][key] is not None for world in worlds)}
        for name in worlds[0]["scores"]
    }  # fmt: skip
    primary = arms[PRIMARY]["held_out_minus_dpo"]["loss"]
    verdict = "helps" if primary["high"] < 0 else "hurts" if primary["low"] > 0 else "no effect shown"
    return {
        "seeds": seeds,
        "verdict": verdict,
        "arms": arms,
        "scores": scores,
        "chosen_is_shorter": shorter,
        "sft_loss": interval([world["sft_eval_losses"][-1] for world in worlds]),
        "world_seconds": [world["seconds"] for world in worlds],
    }


def _mean_log(runs: list[dict], key: str) -> float | None:
    values = [entry[key] for run in runs for entry in run["logs"] if key in entry]
    return statistics.fmean(values) if values else None


def show(value: dict[str, float], digits: int = 3, sign: str = "+") -> str:
    """Format a mean with its interval."""
    numbers = (f"{value[key]:{sign}.{digits}f}" for key in ("mean", "low", "high"))
    return "{} [{}, {}]".format(*numbers)


def tables(summary: dict) -> str:
    """Return the document's tables as markdown."""
    lines = ["| reward models | agreement | temperature |", "|---|---|---|"]
    for name, score in summary["scores"].items():
        temperature = show(score["temperature"], 2, "") if "temperature" in score else "not in every seed"
        lines.append(f"| {name} | {show(score['agreement'], 3, '')} | {temperature} |")
    for part in ("held_out", "train"):
        lines += ["", f"| {part} | loss | minus dpo | accuracy | minus dpo |", "|---|---|---|---|---|"]
        for arm, result in summary["arms"].items():
            differences = result[f"{part}_minus_dpo"]
            cells = [f"{result[part]['loss']['mean']:.4f}", show(differences["loss"], 4)]
            cells += [f"{result[part]['accuracy']['mean']:.3f}", show(differences["accuracy"])]
            lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    lines += ["", "| held_out drift | chosen | minus dpo | rejected | minus dpo |", "|---|---|---|---|---|"]
    for arm, result in summary["arms"].items():
        differences = result["held_out_minus_dpo"]
        cells = []
        for name in ("chosen_drift", "rejected_drift"):
            cells += [f"{result['held_out'][name]['mean']:+.2f}", show(differences[name], 2)]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    lines += ["", "| arm | mean weight | effective sample size | temperatures |", "|---|---|---|---|"]
    for arm, result in summary["arms"].items():
        if result["weight_mean"] is not None:
            temperatures = ", ".join("-" if t is None else f"{t:.2f}" for t in result["temperature"])
            lines.append(f"| {arm} | {result['weight_mean']:.3f} | {result['weight_ess']:.3f} | {temperatures} |")
    return "\n".join(lines)


def draw(summary: dict, path: Path) -> None:
    """Draw the differences to DPO on held-out pairs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.4, 3.4), layout="constrained")
    titles = {"loss": "DPO loss", "accuracy": "pairs ordered as labelled", "chosen_drift": "drift of chosen, nats"}
    arms = [arm for arm in ARMS if arm != "dpo"]
    for axis, (name, title) in zip(figure.subplots(1, 3, sharey=True), titles.items(), strict=True):
        for place, arm in enumerate(arms):
            value = summary["arms"][arm]["held_out_minus_dpo"][name]
            axis.plot([value["low"], value["high"]], [place, place], color="#3b6fb6", linewidth=1.5)
            axis.plot(value["mean"], place, "o", color="#3b6fb6")
        axis.axvline(0, color="#4d4d4d", linewidth=0.8)
        axis.set_yticks(range(len(arms)), arms)
        axis.set_title(f"{title}, minus DPO's", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, axis="x")
        axis.invert_yaxis() if name == "loss" else None
    figure.savefig(path, dpi=130)


def main() -> None:
    """Write the summary, its tables and the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="the folder that run.py wrote")
    parser.add_argument("--summary", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    args = parser.parse_args()
    args.summary.mkdir(parents=True, exist_ok=True)
    summary = summarise(args.output, args.seeds)
    write_json(args.summary / "hh_harmless.json", summary)
    draw(summary, args.summary / "hh_harmless.png")
    print(tables(summary))
    print(f"\nprimary ({PRIMARY} - dpo, held-out loss): {summary['verdict']}")
    print(f"chosen is shorter: {summary['chosen_is_shorter']:.3f}; SFT loss {show(summary['sft_loss'], 3, '')}")


if __name__ == "__main__":
    main()
