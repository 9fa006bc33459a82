"""`gradkit report FOLDER...`: one page of one run, or several side by side."""

import argparse
import sys
from pathlib import Path


def main(argv: list[str]) -> int:
    """Write the page and say where it is; exit code 2 with one sentence if a folder holds no run."""
    parser = argparse.ArgumentParser(
        prog="gradkit report", description="Write one self-contained HTML page of one or several training runs."
    )
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="output folders of training runs")
    parser.add_argument("--output", type=Path, help="the page (default: report.html in the first folder)")
    args = parser.parse_args(argv)
    from ..reporting.page import write_report

    try:
        path = write_report(args.folders, args.output)
    except (FileNotFoundError, ValueError, ImportError) as error:
        print(f"gradkit report: {error}", file=sys.stderr)
        return 2
    print(f"Report: {path}\nNext:   open it in a browser, or compare runs: gradkit report FOLDER FOLDER ...")
    return 0
