"""`gradkit score`: score a data set with a model, and write it with the scores as columns.

Also a module for accelerate's own launcher: `accelerate launch -m hf_gradkit.cli.score --config score.yaml`.
"""

import shlex
import sys
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset

from ..scoring.processes import on_main
from . import score_difficulty, score_reward
from .arguments import parse_job
from .data_arguments import DataArguments
from .errors import USER_ERRORS, report
from .origin import noted_command
from .score_arguments import REWARD, ScoreArguments
from .score_files import check_output, note_origin


def main(argv: list[str] | None = None) -> int:
    """Score as the arguments say, and return the exit code: 0, or 2 for a mistake in the arguments or the data."""
    scoring = False
    try:
        argv = sys.argv[1:] if argv is None else argv
        script, args = parse_job("score", (DataArguments, ScoreArguments), argv)
        dataset = _load(script, args)
        PartialState(cpu=args.use_cpu)
        kind: Any = score_reward if REWARD in args.by else score_difficulty
        plan = kind.plan(dataset, args, _model_options(args))
        key, model, output = plan.key, plan.model, Path(args.output_dir)  # by all processes
        on_main(lambda: check_output(output, key, model, args.overwrite))
        scoring = True  # from here on, one process may fail alone
        scores = plan.run()
        on_main(lambda: kind.write(plan.dataset, scores, output))
        command = shlex.join(noted_command("score", argv))
        on_main(lambda: note_origin(output, script.dataset_name, script.dataset_train_split, command))
        PartialState().wait_for_everyone()
        PartialState().destroy_process_group()
    except USER_ERRORS as error:
        return report(error, every_rank=scoring)
    return 0


def _model_options(args: ScoreArguments) -> dict[str, Any]:
    return {
        "revision": args.model_revision,
        "trust_remote_code": args.trust_remote_code,
        "attn_implementation": args.attn_implementation,
    }


def _load(script: DataArguments, args: ScoreArguments) -> Dataset:
    if args.model_name_or_path is not None and args.checkpoints is not None:
        raise ValueError(
            f"Both `model_name_or_path` ({args.model_name_or_path!r}) and `checkpoints` are set. Keep one of them; a "
            "model may be one of the checkpoints."
        )
    model_is_set = args.model_name_or_path is not None or args.checkpoints
    for name, is_set in (("model_name_or_path", model_is_set), ("output_dir", args.output_dir is not None)):
        if not is_set:
            raise ValueError(f"`{name}` is not set. `gradkit score --help` says what it is.")
    return script.renamed(script.load(), "the data")


if __name__ == "__main__":
    sys.exit(main())
