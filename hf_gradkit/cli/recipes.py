"""`gradkit recipes`: lists the recipes, prints one, or copies it."""

import argparse
import sys
from pathlib import Path

from ..data.resources import find_recipe, resources


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code.

    Raises:
        ValueError: for an unknown recipe, or a file to copy to that exists.
    """
    parser = argparse.ArgumentParser(
        prog="gradkit recipes", description="List the recipes that come with hf-gradkit, print one, or copy it."
    )
    parser.add_argument("name", nargs="?", help="a recipe to print, such as tiny/linupper/sft")
    parser.add_argument("--copy", metavar="FILE", help="write the recipe to this file, to change it")
    args = parser.parse_args(argv)
    if args.name is None:
        if args.copy is not None:
            raise ValueError("--copy needs the name of a recipe. `gradkit recipes` lists them.")
        for name, path in resources("recipes").items():
            description, commands = head(path)
            print("\n    ".join([f"{name}: {description}", *commands]))
        return 0
    text = find_recipe(args.name).read_text(encoding="utf-8")
    if args.copy is None:
        print(text, end="")
        return 0
    target = Path(args.copy)
    if target.exists():
        raise ValueError(f"{args.copy} exists already and is not overwritten. Choose another name for the copy.")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    print(f"Copied to {target}. Start it with: gradkit {Path(find_recipe(args.name)).stem} --config {target}")
    return 0


def head(path: Path) -> tuple[str, list[str]]:
    """Return a recipe's description, its first line, and its launch commands, the indented lines of its head."""
    comments = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comments.append(line.removeprefix("#"))
    return comments[0].strip(), [line.strip() for line in comments[1:] if line.startswith("     ")]


if __name__ == "__main__":
    sys.exit(main())
