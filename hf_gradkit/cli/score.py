"""`gradkit score --by reward`: score a data set with a model, and write it with the scores as columns.

Also a module for accelerate's own launcher: `accelerate launch -m hf_gradkit.cli.score --config score.yaml`.
"""

import json
import os
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset

from .._text import did_you_mean, listing
from ..data.loading import load_split, map_columns
from ..scoring.margins import PairScoring, Rewards, with_margins, without_margins
from ..scoring.processes import on_main
from ..scoring.records import MARGIN
from ..scoring.rewards import DTYPES
from ..scoring.summary import draw_margins, summarize
from ..scoring.work import write_json
from .arguments import parse_job
from .errors import USER_ERRORS, report
from .job import ScriptArguments

METHODS = ("reward",)
DATA, FIGURES, PLOT, WORK = "scored.parquet", "scores.json", "margins.png", "scoring"


@dataclass
class ScoreArguments:
    """What scores, how, and where to.

    Args:
        by (`str`, *optional*, defaults to `"reward"`): what the scores are; `"reward"`: reward margins of pairs.
        model_name_or_path (`str`): folder or name of the model; a folder of folds scores each pair by the model that
            did not see it.
        output_dir (`str`): folder for the scored data.
        per_device_eval_batch_size (`int`, *optional*, defaults to `8`): pairs in a batch of one process.
        max_length (`int`, *optional*): tokens that the model reads; by default its limit.
        overwrite (`bool`, *optional*, defaults to `False`): replace other scores in `output_dir`.
    """

    by: str = field(default="reward", metadata={"help": "What the scores are: 'reward' for reward margins of pairs."})
    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub name of the model. A folder that `gradkit reward --folds` wrote scores each pair "
            "by the model that did not see it."
        },
    )
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a model of the Hub."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the model."})
    dtype: str = field(
        default="auto",
        metadata={
            "help": "Of the weights; 'auto' takes them as they were saved.",
            "choices": list(DTYPES),
        },
    )
    attn_implementation: str | None = field(default=None, metadata={"help": "Which attention implementation to use."})
    output_dir: str | None = field(default=None, metadata={"help": "Folder for the scored data."})
    per_device_eval_batch_size: int = field(
        default=8, metadata={"help": "Pairs in a batch of one process: twice as many sequences."}
    )
    max_length: int | None = field(
        default=None,
        metadata={"help": "Tokens that the model reads; longer sequences are cut at the left. By default its limit."},
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace other scores that are in `output_dir`."})
    use_cpu: bool = field(default=False, metadata={"help": "Score on the CPU though there is an accelerator."})

    def __post_init__(self):
        if self.by not in METHODS:
            raise ValueError(f"`by` is {self.by!r}.{did_you_mean(self.by, METHODS)} Known scores: {listing(METHODS)}.")
        if self.per_device_eval_batch_size < 1:
            raise ValueError(
                f"`per_device_eval_batch_size` must be at least 1, but it is {self.per_device_eval_batch_size}."
            )


def main(argv: list[str] | None = None) -> int:
    """Score as the arguments say, and return the exit code: 0, or 2 for a mistake in the arguments or the data."""
    scoring = False
    try:
        script, args = parse_job("score", (ScriptArguments, ScoreArguments), sys.argv[1:] if argv is None else argv)
        dataset = _load(script, args)
        PartialState(cpu=args.use_cpu)
        output = Path(args.output_dir)
        plan = PairScoring(
            dataset,
            args.model_name_or_path,
            batch_size=args.per_device_eval_batch_size,
            max_length=args.max_length,
            dtype=args.dtype,
            cache_folder=output / WORK,
            model_init_kwargs={
                "revision": args.model_revision,
                "trust_remote_code": args.trust_remote_code,
                "attn_implementation": args.attn_implementation,
            },
        )
        key, model = plan.key, plan.model  # by all processes
        on_main(lambda: _check_output(output, key, model, args.overwrite))
        scoring = True  # from here on, one process may fail alone
        rewards = plan.run()
        on_main(lambda: _write(dataset, rewards, output))
        PartialState().wait_for_everyone()
        PartialState().destroy_process_group()
    except USER_ERRORS as error:
        return report(error, every_rank=scoring)
    return 0


def _load(script: ScriptArguments, args: ScoreArguments) -> Dataset:
    for name in ("model_name_or_path", "output_dir"):
        if getattr(args, name) is None:
            raise ValueError(f"`{name}` is not set. `gradkit score --help` says what it is.")
    if script.dataset_name is None:
        raise ValueError("No data is named. Set `dataset_name` to a file or a data set of the Hub.")
    if script.eval_dataset_name is not None:
        raise ValueError(
            f"`eval_dataset_name` is {script.eval_dataset_name!r}, but one split is scored at a time, the one that "
            "`dataset_train_split` names. Score the other data into a folder of its own."
        )
    dataset = load_split(
        script.dataset_name, script.dataset_train_split, script.dataset_config, script.dataset_streaming
    )
    return without_margins(map_columns(dataset, script.column_mapping or {}, "the data"))


def _check_output(output: Path, key: str, model: str, overwrite: bool) -> None:
    """Refuse to replace other scores unasked, before anything is scored."""
    if not (output / FIGURES).exists() or overwrite:
        return
    found = json.loads((output / FIGURES).read_text())
    if found["key"] != key:
        raise ValueError(
            f"`output_dir` {str(output)!r} holds the scores of {found['model']!r}, and now {model!r} would score: "
            "another model, other data or other settings. Choose another folder, or replace them with "
            "--overwrite true."
        )


def _write(dataset: Dataset, rewards: Rewards, output: Path) -> None:
    """Write the scored data and its figures, and say what they are; on the main process."""
    margins = rewards.chosen - rewards.rejected
    figures: dict[str, Any] = {"format": 1, "by": "reward", "model": rewards.model, "key": rewards.key}
    figures |= summarize(margins)
    path = output / DATA
    temporary = path.with_suffix(".parquet.tmp")
    with_margins(dataset, rewards).to_parquet(str(temporary))
    os.replace(temporary, path)
    write_json(output / FIGURES, figures)
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


if __name__ == "__main__":
    sys.exit(main())
