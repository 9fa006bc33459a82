"""What `gradkit score --by reward` does: reward margins of preference pairs."""

import shlex
from pathlib import Path
from typing import Any

from datasets import Dataset

from ..scoring.margins import PairScoring, Rewards, with_margins, without_margins
from ..scoring.records import MARGIN
from ..scoring.summary import draw_margins, summarize
from .score_arguments import ScoreArguments
from .score_files import FIGURES, WORK, write_scores

PLOT = "margins.png"


def plan(dataset: Dataset, args: ScoreArguments, options: dict[str, Any]) -> PairScoring:
    """Return what is to be scored."""
    return PairScoring(
        without_margins(dataset),
        args.model_name_or_path,
        batch_size=args.per_device_eval_batch_size,
        max_length=args.max_length,
        dtype=args.dtype,
        cache_folder=Path(args.output_dir) / WORK,
        model_init_kwargs=options,
    )


def write(dataset: Dataset, rewards: Rewards, output: Path) -> None:
    """Write the scored data and its figures, and say what they are; on the main process."""
    margins = rewards.chosen - rewards.rejected
    figures: dict[str, Any] = {"format": 1, "by": "reward", "model": rewards.model, "key": rewards.key}
    figures |= summarize(margins)
    path = write_scores(with_margins(dataset, rewards), figures, output)
    plotted = draw_margins(margins, output / PLOT)
    if rewards.scored == 0:
        print("Everything was scored already; nothing was scored again.")
    temperature = "none fits" if figures["temperature"] is None else f"{figures['temperature']:.3g}"
    print(
        f"{figures['rows']} pairs scored by {rewards.model}: it agrees with {figures['agreement']:.1%} of the labels; "
        f"mean margin {figures['mean_margin']:.3g}, standard deviation {figures['std_margin']:.3g}, temperature "
        f"{temperature}.\nThe data with the column {MARGIN!r} is in {path}, the figures are in {output / FIGURES}"
        f"{f', a histogram is in {output / PLOT}' if plotted else ''}.\n"
        f"Train on it: gradkit dpo --dataset_name {shlex.quote(str(path))} --weighting madpo --model_name_or_path ..."
    )
