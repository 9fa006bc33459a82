"""`gradkit demo [CHAPTER]`: run one main job offline."""

import argparse
import importlib
import os
from pathlib import Path
from types import ModuleType

from ..demo import CHAPTERS, DEFAULT_CHAPTER


def main(argv: list[str]) -> int:
    """Run a chapter of the demo, or only make its model and data."""
    chapters = "; ".join(f"{name}: {text}" for name, (_, text) in CHAPTERS.items())
    parser = argparse.ArgumentParser(
        prog="gradkit demo",
        description="Run one main job offline, on a tiny model and synthetic data. " + chapters,
    )
    parser.add_argument("chapter", nargs="?", choices=list(CHAPTERS), help=f"what to show ({DEFAULT_CHAPTER})")
    parser.add_argument("--output_dir", type=Path, default=Path("gradkit_demo"), help="where everything goes")
    parser.add_argument(
        "--prepare_only",
        action="store_true",
        help="only write the models and the data of the chapter, or of all: the tiny recipes use them",
    )
    parser.add_argument(
        "--texts",
        type=Path,
        metavar="FILE",
        help="with --prepare_only: only write a tiny model, with a tokenizer of the texts in this data file",
    )
    args = parser.parse_args(argv)
    if args.texts is not None and not args.prepare_only:
        raise ValueError(
            f"--texts {args.texts} makes a model of your own texts, which no chapter uses. Add --prepare_only."
        )
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before the imports below: the demo needs nothing from outside
    if args.texts is not None:
        from ..demo.material import prepare_model

        print(f"Model: {prepare_model(args.output_dir, args.texts) / 'model'}")
        return 0
    if args.prepare_only:
        for name in [args.chapter] if args.chapter else CHAPTERS:
            folder = _chapter(name).prepare(args.output_dir)
            print(f"Model: {folder / 'model'}\nData:  {folder / 'data'}")
        print("Next:  gradkit recipes        (the tiny ones use these models and data)")
        return 0
    _chapter(args.chapter or DEFAULT_CHAPTER).run(args.output_dir)
    return 0


def _chapter(name: str) -> ModuleType:
    return importlib.import_module(CHAPTERS[name][0])
