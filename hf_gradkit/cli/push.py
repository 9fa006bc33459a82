"""`gradkit push FOLDER REPO`: publish a model, a selection or scores on the Hub, with a page that says what it is."""

import argparse
import shlex
from pathlib import Path

from .errors import USER_ERRORS, report


def main(argv: list[str] | None = None) -> int:
    """Push as the arguments say, and return the exit code: 0, or 2 if nothing was pushed."""
    parser = _parser()
    args = parser.parse_args(argv)
    from ..publishing.gate import Limits
    from ..publishing.push import Push

    command = shlex.join(["gradkit", "push", args.folder, args.repo])
    try:
        metadata = {"license": args.license, "language": args.language, "tags": args.tags}
        push = Push(
            folder=Path(args.folder).expanduser(),
            repo=args.repo,
            repo_type=args.repo_type,
            revision=args.revision,
            private=args.private,
            message=args.commit_message,
            metadata={key: value for key, value in metadata.items() if value},
            limits=Limits(args.max_extraction_above_baseline, args.max_tpr_at_1_fpr),
            again=f"run it again: {shlex.join(['gradkit', 'push', *(argv or [])])}",
        )
        if args.dry_run is not None:
            files = push.dry_run(Path(args.dry_run))
            print(f"Nothing was pushed. {len(files)} files would be, and are in {args.dry_run}: {', '.join(files)}.")
            print(f"Read the page: {Path(args.dry_run) / 'README.md'}\nThen push: {command}")
            return 0
        address = push.run()
    except USER_ERRORS as error:
        return report(error)
    print(f"Pushed to {address}{f' (branch {args.revision})' if args.revision else ''}.")
    print(f"Read the page there. To see a page before it is pushed: {command} --dry_run DIR")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gradkit push",
        description="Publish the output folder of a training, of gradkit select or of gradkit score on the Hub.",
        epilog="What stays here: audits, hold-outs and other names that begin with an underscore, checkpoints, states "
        "of optimizers, example logs, and reports with rows of the data in them.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="what is published: a model, a selection or scores")
    parser.add_argument("repo", metavar="REPO", help="where to: owner/name, or name in your own account")
    _option(parser, "repo_type", choices=("model", "dataset"), help="found out from the folder by default")
    _option(
        parser,
        "private",
        action=argparse.BooleanOptionalAction,
        help="make a new repository private (default: as the account's settings say)",
    )
    _option(parser, "revision", metavar="BRANCH", help="push to this branch, made if it is missing")
    _option(parser, "commit_message", metavar="TEXT", help="of the commit")
    _option(parser, "license", metavar="NAME", help="such as apache-2.0 (default: the base model's, where known)")
    _option(parser, "language", nargs="+", metavar="CODE", help="such as en")
    _option(parser, "tags", nargs="+", metavar="TAG", help="further tags of the page")
    _option(
        parser,
        "max_extraction_above_baseline",
        type=float,
        metavar="SHARE",
        help="push only if the extraction audit finds at most this share above that of held-out rows, such as 0.02",
    )
    _option(
        parser,
        "max_tpr_at_1_fpr",
        type=float,
        metavar="SHARE",
        help="push only if no attack of the membership audit recognises more than this share of the members at a "
        "false positive rate of 1%%, such as 0.05",
    )
    _option(
        parser, "dry_run", metavar="DIR", help="write the page and the files into this new folder, and push nothing"
    )
    return parser


def _option(parser: argparse.ArgumentParser, name: str, **keywords: object) -> None:
    """Add an option under both spellings, as all other commands have them."""
    parser.add_argument(*dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"]), dest=name, **keywords)
