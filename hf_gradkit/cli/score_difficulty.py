"""What `gradkit score --by loss|perplexity|el2n|grand|token_accuracy` does: how hard SFT examples are for a model."""

import shlex
from pathlib import Path
from typing import Any

from datasets import Dataset

from ..scoring.difficulty import DifficultyScoring
from ..scoring.difficulty_columns import Difficulty, earlier_ids, with_difficulty, without_difficulty
from ..scoring.difficulty_summary import draw_difficulty, summarize_difficulty
from ..scoring.sft_data import SFTFormat
from .score_arguments import ScoreArguments
from .score_files import FIGURES, WORK, write_scores

PLOT = "difficulty.png"


def plan(dataset: Dataset, args: ScoreArguments, options: dict[str, Any]) -> DifficultyScoring:
    """Return what is to be scored."""
    layout = {"max_length": SFTFormat.max_length if args.max_length is None else args.max_length}
    for name in ("completion_only_loss", "assistant_only_loss", "dataset_text_field", "truncation_mode", "eos_token"):
        layout[name] = getattr(args, name)
    rows = without_difficulty(dataset)
    return DifficultyScoring(
        rows,
        args.checkpoints or args.model_name_or_path,
        tuple(args.by),
        layout=SFTFormat(**layout),
        example_id_column=args.example_id_column or earlier_ids(rows),
        parameters=args.parameters,
        exact=args.exact,
        batch_size=args.per_device_eval_batch_size,
        dtype=args.dtype,
        cache_folder=Path(args.output_dir) / WORK,
        model_init_kwargs=options,
    )


def write(dataset: Dataset, scores: Difficulty, output: Path) -> None:
    """Write the scored data and its figures, and say what they are; on the main process."""
    figures = {"format": 1, "by": list(scores.by), "model": scores.model, "key": scores.key}
    figures |= summarize_difficulty(scores)
    path = write_scores(with_difficulty(dataset, scores), figures, output)
    plotted = draw_difficulty(scores, output / PLOT)
    if scores.scored == 0:
        print("Everything was scored already; nothing was scored again.")
    print(f"{figures['rows']} examples scored by {scores.model}.")
    if figures["without_labels"]:
        print(f"{figures['without_labels']} of them have no label token, and empty scores.")
    for name in scores.by:
        of = figures["scores"][name]
        print(
            f"{name}: median {of['median']:.4g}, 5 % below {of['q05']:.4g}, 5 % above {of['q95']:.4g}, hardest "
            f"example {of['hardest'][0]}."
        )
    if figures["coverage"] is not None and figures["coverage"]["uncovered"]:
        print(f"GraNd is over {figures['coverage']['coverage']:.1%} of the parameters; {FIGURES} names the others.")
    print(
        f"The data with the columns {', '.join(map(repr, scores.columns))} is in {path}, the figures are in "
        f"{output / FIGURES}{f', histograms are in {output / PLOT}' if plotted else ''}.\n"
        f"{_next(scores.by, shlex.quote(str(path)))}"
    )


def _next(by: tuple[str, ...], data: str) -> str:
    """Return what to run on scored data: a selector by one of the scores, if there is one."""
    train = f"gradkit sft --dataset_name {data} --model_name_or_path ..."
    selector = next((name for name in by if name in ("perplexity", "el2n", "grand")), None)
    if selector is None:
        return f"Train on it, or on a part that you choose by the column: {train}"
    return (
        f"Keep the half with the highest {selector}: gradkit select --by {selector} --fraction 0.5 "
        f"--dataset_name {data} --output_dir ...\nTrain on all of it: {train}"
    )
