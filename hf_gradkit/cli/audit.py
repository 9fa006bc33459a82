"""`gradkit audit secrets | hold_out | membership | extraction`: what a model gives away about its training data.

Also a module for accelerate's own launcher: `accelerate launch -m hf_gradkit.cli.audit membership --config x.yaml`.
"""

import json
import os
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset

from .._backends import prepare_cpu_backends
from .._text import did_you_mean, listing
from ..audit.epochs import audit_checkpoints
from ..audit.extraction import audit_extraction
from ..audit.membership import audit_membership, default_folder
from ..data.duplicates import drop_duplicates
from ..data.hold_out import HELD_OUT, TRAIN, HoldOutRecord, hold_out, written_sides
from ..data.loading import load_split
from ..data.private_files import make_private_folder
from ..data.synthetic_secrets import canary_rows, secret_rows
from ..reporting.audit_files import FINDINGS, write_audit
from ..reporting.run_info import FILE as RUN_INFO
from ..scoring.processes import on_main
from .arguments import parse_job
from .audit_arguments import (
    AuditArguments,
    ExtractionArguments,
    HoldOutArguments,
    MembershipArguments,
    SecretsArguments,
)
from .config_file import split_config
from .data_arguments import DataArguments
from .errors import USER_ERRORS, report

KINDS = {
    "secrets": "write invented records and canaries, to try the rest on",
    "hold_out": "set a random part of the data aside before training",
    "membership": "tell the rows that were trained on from those that were held out",
    "extraction": "complete training rows from their beginnings",
}
TYPES = {
    "secrets": (SecretsArguments,),
    "hold_out": (DataArguments, HoldOutArguments),
    "membership": (DataArguments, AuditArguments, MembershipArguments),
    "extraction": (DataArguments, AuditArguments, ExtractionArguments),
}
WORK = "work"


def main(argv: list[str] | None = None) -> int:
    """Audit as the arguments say, and return the exit code: 0, or 2 for a mistake in the arguments or the data."""
    auditing = False
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for attacks of the user's own; `python -m` has it, a console script does not
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] in (["-h"], ["--help"]):
        print(_usage())
        return 0
    try:
        kind, argv = _split_kind(argv)
        parsed = parse_job(f"audit {kind}", TYPES[kind], argv)
        prepare_cpu_backends()
        PartialState(cpu=parsed[-1 if kind == "secrets" else 1].use_cpu)
        if kind in ("secrets", "hold_out"):
            on_main(lambda: {"secrets": _write_secrets, "hold_out": _hold_out}[kind](*parsed))
        else:
            script, args, options = parsed
            audit, folder = _plan(kind, script, args, options)
            auditing = True  # from here on, one process may fail alone
            result = audit(args.model_name_or_path)
            if args.checkpoints:
                result.figures["epochs"] = list(audit_checkpoints(args.model_name_or_path, audit))
            on_main(lambda: _write(result, folder, args.show_text))
        PartialState().wait_for_everyone()
        PartialState().destroy_process_group()
    except USER_ERRORS as error:
        return report(error, every_rank=auditing)
    return 0


def _usage() -> str:
    width = max(map(len, KINDS))
    lines = [f"  {name:<{width}}  {words}" for name, words in KINDS.items()]
    head = [f"usage: gradkit audit {'|'.join(KINDS)} [options]", ""]
    return "\n".join([*head, *lines, "", "`gradkit audit membership --help` lists the options of one, and so on."])


def _split_kind(argv: list[str]) -> tuple[str, list[str]]:
    """Return which audit is asked for, and the other arguments.

    Raises:
        ValueError: if none or an unknown one is.
    """
    config, rest = split_config(argv)
    if not rest or rest[0] not in KINDS:
        named = repr(rest[0]) if rest else "nothing"
        near = did_you_mean(rest[0], KINDS) if rest else ""
        raise ValueError(
            f"gradkit audit needs the kind of audit first, and got {named}.{near} Kinds: {listing(KINDS)}."
        )
    return rest[0], [*(["--config", config] if config is not None else []), *rest[1:]]


# ---- before training ------------------------------------------------------------------------------------------------


def _write_secrets(args: SecretsArguments) -> None:
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    records, canaries = secret_rows(args.rows, args.seed, copies=args.copies), canary_rows(args.canaries, args.seed)
    for name, rows in (("records", records), ("canaries", canaries)):
        temporary = folder / f"{name}.jsonl.tmp"
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.replace(temporary, folder / f"{name}.jsonl")
    print(
        f"{len(records)} invented records are in {folder / 'records.jsonl'}, {args.canaries} canaries in "
        f"{folder / 'canaries.jsonl'}.\nNext: gradkit audit hold_out --dataset_name "
        f"{shlex.quote(str(folder / 'records.jsonl'))} --output_dir ..."
    )


def _hold_out(script: DataArguments, args: HoldOutArguments) -> None:
    if args.output_dir is None:
        raise ValueError("`output_dir` is not set. Name the folder of the model that is to be trained.")
    dataset = script.renamed(script.load(), "the data")
    if args.drop_duplicates:
        named = {args.id_column, args.document_column} & set(dataset.column_names)
        given, dataset = dataset, drop_duplicates(dataset, tuple(named))
        print(f"{len(given) - len(dataset)} of {len(given)} rows are copies of earlier ones and are left out.")
    split = hold_out(dataset, args.fraction, args.seed, None, args.id_column, args.document_column)
    found = HoldOutRecord.read(args.output_dir)
    if found is not None and not found.same_rows(split.record) and not args.overwrite:
        raise ValueError(
            f"`output_dir` {args.output_dir!r} has the record of another hold-out. If a model there was trained by "
            "it, choose another folder; otherwise replace it with --overwrite true."
        )
    folder = split.write(args.output_dir)
    train, held = (shlex.quote(str(folder / name)) for name in (TRAIN, HELD_OUT))
    print(
        f"{len(split.held_out)} of {len(dataset)} rows are held out; the record is in {folder}, private and never "
        f"pushed with the model.\nTrain on the others: gradkit sft --dataset_name {train} --eval_dataset_name {held} "
        f"--output_dir {shlex.quote(args.output_dir)} ...\n"
        f"Then audit: gradkit audit membership --model_name_or_path {shlex.quote(args.output_dir)}"
    )


# ---- auditing ---------------------------------------------------------------------------------------------------


def _plan(kind: str, script: DataArguments, args: AuditArguments, options: Any) -> tuple[Callable[[str], Any], Path]:
    """Return what audits a model's folder, and where the report goes."""
    if args.model_name_or_path is None:
        raise ValueError("`model_name_or_path` is not set. Name the folder of the fine-tuned model.")
    folder = Path(args.output_dir) if args.output_dir is not None else default_folder(args.model_name_or_path)
    if folder is None:
        raise ValueError(
            f"`output_dir` is not set, and {args.model_name_or_path!r} is no folder here. Name one for the report."
        )
    on_main(lambda: make_private_folder(folder))
    members, others = _sides(script, args)
    common = {
        "non_members": others,
        "reference_model": args.reference_model_name_or_path,
        "hold_out": _record_folder(args),
        "layout": args.layout(_recorded_settings(args.model_name_or_path)),
        "max_examples": args.max_examples,
        "seed": args.seed,
        "batch_size": args.per_device_eval_batch_size,
        "cache_folder": folder / WORK,
        "dtype": args.dtype,
        "model_init_kwargs": args.model_init_kwargs,
    }
    if kind == "membership":
        own = {
            "attacks": options.attacks,
            "attack_kwargs": options.attack_kwargs,
            "document_column": options.document_column,
            "false_positive_rates": tuple(options.false_positive_rates),
            "bootstrap_rounds": options.bootstrap_rounds,
        }
    else:
        own = {
            "prefix_tokens": options.prefix_tokens,
            "suffix_tokens": options.suffix_tokens,
            "generations": options.generations,
            "sampling": options.sampling,
            "samples": tuple(options.samples),
            "chances": tuple(options.chances),
            "canaries": None if options.canaries is None else load_split(options.canaries, "train"),
            "skip_short": options.skip_short,
        }
    run = audit_membership if kind == "membership" else audit_extraction
    return partial(run, dataset=members, **common, **own), folder


def _sides(script: DataArguments, args: AuditArguments) -> tuple[Dataset, Dataset | None]:
    """Return the members and the non-members, or the data that was split and None."""
    if script.dataset_name is None:
        written = written_sides(args.hold_out or args.model_name_or_path)
        if written is None or args.non_members_name is not None:
            raise ValueError(
                "No data is named, and none was written by `gradkit audit hold_out` beside the model. Set "
                "`dataset_name` to what was held out from, or to the training data together with `non_members_name`."
            )
        sides = [script.renamed(load_split(str(path), "train"), "the data") for path in written]
        return sides[0], sides[1]
    members = script.renamed(script.load(), "the data")
    if args.non_members_name is None:
        return members, None
    others = load_split(args.non_members_name, args.non_members_split, file_split=args.non_members_split)
    return members, script.renamed(others, "the non-members")


def _record_folder(args: AuditArguments) -> str | None:
    """Return the folder with the record; a checkpoint's run folder has it as well."""
    if args.hold_out is not None:
        return args.hold_out
    local = Path(args.model_name_or_path).expanduser().is_dir()
    return args.model_name_or_path if local and HoldOutRecord.read(args.model_name_or_path) else None


def _recorded_settings(model: str) -> dict[str, Any]:
    """Return the settings of the run that trained a model, where its folder has them."""
    path = Path(model).expanduser() / RUN_INFO
    return json.loads(path.read_text()).get("settings", {}) if path.is_file() else {}


def _write(result: Any, folder: Path, show_text: bool) -> None:
    """Write the report and say what was found and where it is; on the main process."""
    figures = result.figures
    paths = write_audit(figures, result.table(show_text), folder)
    for name in ("unsound", "confounded"):
        if figures.get(name):
            print(f"{name.upper()}: see the head of the report.")
    print("\n".join(FINDINGS[figures["audit"]](figures)))
    print(
        f"The report is in {paths['page']} (and {paths['text'].name}), the figures are in {paths['figures']}, the "
        f"examples, {'with' if show_text else 'without'} their texts, in {paths['examples']}; you alone can read them."
    )
    model = shlex.quote(str(figures["model"]))
    other = "extraction" if figures["audit"] == "membership" else "membership"
    print(f"Next: gradkit audit {other} --model_name_or_path {model} ..., or gradkit report {model}")


if __name__ == "__main__":
    sys.exit(main())
