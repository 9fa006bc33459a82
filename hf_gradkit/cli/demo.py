"""`gradkit demo [CHAPTER]`: run one main job offline."""

import argparse
import importlib
import os
from pathlib import Path

from ..demo import CHAPTERS, DEFAULT_CHAPTER


def main(argv: list[str]) -> int:
    """Run a chapter of the demo, or only make its model and data."""
    chapters = "; ".join(f"{name}: {text}" for name, (_, text) in CHAPTERS.items())
    parser = argparse.ArgumentParser(
        prog="gradkit demo",
        description="Run one main job offline, on a tiny model and synthetic data. " + chapters,
    )
    parser.add_argument("chapter", nargs="?", choices=list(CHAPTERS), default=DEFAULT_CHAPTER, help="what to show")
    parser.add_argument("--output_dir", type=Path, default=Path("gradkit_demo"), help="where everything goes")
    parser.add_argument(
        "--prepare_only",
        action="store_true",
        help="only write the model and the data, which the tiny recipes use",
    )
    args = parser.parse_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before the imports below: the demo needs nothing from outside
    if args.prepare_only:
        from ..demo.material import prepare

        prepare(args.output_dir)
        print(f"Model: {args.output_dir / 'model'}\nData:  {args.output_dir / 'data'}")
        print("Next:  gradkit recipes        (the tiny ones use this model and data)")
        return 0
    importlib.import_module(CHAPTERS[args.chapter][0]).run(args.output_dir)
    return 0
