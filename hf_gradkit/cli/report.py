"""`gradkit report FOLDER...`: one page of one run, or several side by side."""

import argparse
import sys
from pathlib import Path


def main(argv: list[str]) -> int:
    """Write the page and say where it is; exit code 2 with one sentence if a folder holds no run."""
    parser = argparse.ArgumentParser(
        prog="gradkit report",
        description="Write one self-contained page of training runs, of selections, of audits, or of what a second "
        "model does better and worse than a first.",
    )
    parser.add_argument(
        "folders",
        nargs="+",
        metavar="FOLDER",
        help="output folders of training runs, of `gradkit select`, or of `gradkit score` by two models on the same "
        "data; or models that were audited",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="a .html page, or .md for Markdown (default: both, report.html and report.md in the first folder)",
    )
    args = parser.parse_args(argv)
    from ..reporting.page import write_report

    try:
        path = write_report(args.folders, args.output)
    except (FileNotFoundError, ValueError, ImportError) as error:
        print(f"gradkit report: {error}", file=sys.stderr)
        return 2
    text = "" if args.output else f", and as Markdown {path.with_suffix('.md').name} beside it"
    print(f"Report: {path}{text}\nNext:   open it in a browser, or compare runs: gradkit report FOLDER FOLDER ...")
    return 0
