"""`gradkit select --by fifa`: keep the rows of a data set that are worth training on, and say why.

Also a module for accelerate's own launcher: `accelerate launch -m hf_gradkit.cli.select --config select.yaml`.
"""

import gzip
import json
import os
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset

from ..data.json_dates import written_dates
from ..publishing.dataset_page import selection_page
from ..publishing.hub import check_repo
from ..publishing.page import write_page
from ..publishing.push import Push
from ..reporting.selection_files import FIGURES, SCORES, replace, write_selection_files
from ..scoring import fingerprints
from ..scoring.processes import on_main
from ..selection.base import Selection, check_dataset, take
from ..selection.registry import build_selector
from ..trainers.options import parse_json
from .arguments import parse_job
from .data_arguments import DataArguments
from .errors import USER_ERRORS, report
from .origin import noted_command

DATA, WORK = "selected", "scoring"


@dataclass
class SelectArguments:
    """What is kept, by what, and where it goes.

    Args:
        by (`str`, *optional*, defaults to `"fifa"`): the selector, or `"package.module:Class"` for one of your own.
        selector_kwargs (`dict`, *optional*): its options.
        fraction (`float`, *optional*): share of the rows that is kept; or
        count (`int`, *optional*): how many rows are kept.
        seed (`int`, *optional*, defaults to `0`): of everything that is drawn.
        output_dir (`str`): folder for the selection.
        per_device_eval_batch_size (`int`, *optional*, defaults to `8`): rows in a batch of one process.
        overwrite (`bool`, *optional*, defaults to `False`): replace another selection in `output_dir`.
        push_to_hub (`bool`, *optional*, defaults to `False`): upload the folder as a data set, with its card.
        hub_dataset_id (`str`, *optional*): name of the data set on the Hub.
        hub_private_repo (`bool`, *optional*): make it private; by default as the account's settings say.
    """

    by: str = field(
        default="fifa",
        metadata={"help": "The selector: 'fifa', 'random', 'length', ..., or 'package.module:Class' of your own."},
    )
    selector_kwargs: dict | str | None = field(
        default=None,
        metadata={"help": 'Options of the selector, as a mapping or JSON, such as \'{"method": "greedy", "k": 5}\'.'},
    )
    fraction: float | None = field(default=None, metadata={"help": "Share of the rows that is kept, in (0, 1]."})
    count: int | None = field(default=None, metadata={"help": "How many rows are kept, instead of `fraction`."})
    seed: int = field(default=0, metadata={"help": "Of everything that is drawn."})
    output_dir: str | None = field(default=None, metadata={"help": "Folder for the selected data and the report."})
    per_device_eval_batch_size: int = field(
        default=8, metadata={"help": "Rows in a batch of one process, where a model scores."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace another selection that is in `output_dir`."})
    push_to_hub: bool = field(default=False, metadata={"help": "Upload the folder as a data set, with its card."})
    hub_dataset_id: str | None = field(default=None, metadata={"help": "Name of the data set on the Hub."})
    hub_private_repo: bool | None = field(default=None, metadata={"help": "Make the data set on the Hub private."})
    use_cpu: bool = field(default=False, metadata={"help": "Score on the CPU though there is an accelerator."})

    def __post_init__(self):
        if isinstance(self.selector_kwargs, str):
            self.selector_kwargs = parse_json("selector_kwargs", self.selector_kwargs)
        if self.push_to_hub and not self.hub_dataset_id:
            raise ValueError("`push_to_hub` is true, but `hub_dataset_id` is not set. Name the data set: owner/name.")
        if self.push_to_hub:
            check_repo(self.hub_dataset_id)
        for name in ("fraction", "count", "seed"):
            if name in (self.selector_kwargs or {}):
                raise ValueError(f"`{name}` is an option of its own: take it out of `selector_kwargs`.")


def main(argv: list[str] | None = None) -> int:
    """Select as the arguments say, and return the exit code: 0, or 2 for a mistake in the arguments or the data."""
    selecting = False
    argv = sys.argv[1:] if argv is None else argv
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for functions of the user's own; `python -m` has it, a console script does not
    try:
        script, args = parse_job("select", (DataArguments, SelectArguments), argv)
        given = _load(script, args)
        dataset = script.renamed(given, "the data")
        PartialState(cpu=args.use_cpu)
        output = Path(args.output_dir)
        selector = build_selector(
            args.by,
            {
                **(args.selector_kwargs or {}),
                **{"fraction": args.fraction, "count": args.count, "seed": args.seed},
                **{"batch_size": args.per_device_eval_batch_size, "cache_folder": output / WORK},
            },
        )
        models = selector.models()
        key = on_main(lambda: _key(args, dataset, models))
        on_main(lambda: _check_output(output, key, args.overwrite))
        selecting = True  # from here on, one process may fail alone
        result = selector.select(dataset)
        command = shlex.join(noted_command("select", argv))
        on_main(lambda: _write(given, result, script, output, key, command))
        if args.push_to_hub:
            on_main(lambda: _push(output, args))
        PartialState().wait_for_everyone()
        PartialState().destroy_process_group()
    except USER_ERRORS as error:
        return report(error, every_rank=selecting)
    return 0


def _load(script: DataArguments, args: SelectArguments) -> Dataset:
    if args.output_dir is None:
        raise ValueError("`output_dir` is not set. `gradkit select --help` says what it is.")
    dataset = script.load()
    check_dataset(dataset)
    return dataset


def _key(args: SelectArguments, dataset: Dataset, models: dict[str, Any]) -> str:
    options = (args.by, args.selector_kwargs, args.fraction, args.count, args.seed)
    scored_by = (models,) if models else ()  # by their content: the same path may hold another model today
    return fingerprints.digest(
        "selection", 1, *options, fingerprints.hash_rows(dataset, dataset.column_names), *scored_by
    )


def _check_output(output: Path, key: str, overwrite: bool) -> None:
    """Refuse to replace another selection unasked, before anything is scored."""
    if not (output / FIGURES).exists() or overwrite:
        return
    try:
        found = json.loads((output / FIGURES).read_text())
        what = f"{found['kept']} of {found['rows']} rows by {found['by']!r}"
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{str(output / FIGURES)!r} is not what `gradkit select` writes ({error!r}). Choose another `output_dir`, "
            "or replace what is there with --overwrite true."
        ) from error
    if found.get("key") != key:  # of a trainer's filter there is none
        raise ValueError(
            f"`output_dir` {str(output)!r} holds another selection: {what}, with other options or models, or of other "
            "data. Choose another folder, or replace it with --overwrite true, which uses again what was scored in "
            "this one."
        )


def _write(given: Dataset, result: Selection, script: DataArguments, output: Path, key: str, command: str) -> None:
    """Write the selection, and say where it is; on the main process.

    The figures are what makes the folder a selection: an old one's go first, the new ones come last, so that what a
    kill leaves is never rows of one selection beside the figures of another.
    """
    output.mkdir(parents=True, exist_ok=True)
    (output / FIGURES).unlink(missing_ok=True)
    data = output / _data_name(script.dataset_name)
    dates = written_dates(script.dataset_name, given, result.kept)
    _write_data(
        take(given, result.kept, result.added), data, [dates.get(row, {}) for row in result.kept]
    )  # with the columns' own names
    for old in output.glob(f"{DATA}.*"):
        if old != data:
            old.unlink()  # of a selection from a file of another kind, or half written
    facts = {"source": script.dataset_name, "split": script.dataset_train_split, "command": command}
    card = write_page(selection_page(output, {**facts, **result.report}, data.name), output)
    page = write_selection_files(result.report, result.scores, output, key=key, **facts)
    job = "dpo" if "rejected" in result.dataset.column_names else "sft"
    options = "".join(f"--weight_column {name} --normalize_weight_column true " for name in result.added)
    if script.column_mapping:  # the selected rows have the columns of the source
        options += f"--column_mapping {shlex.quote(json.dumps(script.column_mapping))} "
    print(
        f"{result.report['kept']} of {result.report['rows']} rows kept by {result.report['by']}.\n"
        f"The data is in {data}, the scores of all rows are in {output / SCORES}, the figures in {output / FIGURES}, "
        f"the card in {card}{f', the report in {page}' if page else ''}.\n"
        f"Train on it: gradkit {job} --dataset_name {shlex.quote(str(data))} {options}--model_name_or_path ..."
    )


def _data_name(source: str) -> str:
    """Return the name of the data's file: of the kind of the file that was read, else parquet."""
    path = Path(source).expanduser()
    suffixes = [suffix.lower() for suffix in path.suffixes] if path.is_file() else []
    packed = ".gz" if suffixes and suffixes[-1] == ".gz" else ""
    kind = suffixes[-2 if packed else -1] if len(suffixes) > bool(packed) else ".parquet"
    return DATA + {".json": ".jsonl"}.get(kind, kind) + packed


def _write_data(dataset: Dataset, path: Path, dates: list[dict]) -> None:
    def write(temporary: Path) -> None:
        if path.suffix == ".parquet":
            dataset.to_parquet(str(temporary))
            return
        with (gzip.open if path.suffix == ".gz" else open)(temporary, "wb") as file:
            if ".csv" in path.suffixes:
                dataset.to_csv(file)
            else:
                for row, written in zip(dataset.with_format(None), dates, strict=True):
                    # Not `to_json`, which rounds numbers and turns dates into milliseconds.
                    file.write(json.dumps({**row, **written}, ensure_ascii=False, default=str).encode() + b"\n")

    replace(path, write)


def _push(output: Path, args: SelectArguments) -> None:
    push = Push(
        output,
        args.hub_dataset_id,
        repo_type="dataset",
        private=args.hub_private_repo,
        message="Upload a selection made with hf_gradkit",
        again=f"gradkit push {shlex.quote(str(output))} {args.hub_dataset_id}",
    )
    push.run()
    print(f"The data set was pushed to the Hub as {args.hub_dataset_id}.")


if __name__ == "__main__":
    sys.exit(main())
