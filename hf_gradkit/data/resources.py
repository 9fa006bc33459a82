"""Finds the recipes and launch configurations that come with the package."""

from pathlib import Path

from .._text import did_you_mean, listing

_PACKAGE = Path(__file__).resolve().parent.parent


def resource_folder(name: str) -> Path:
    """Return the folder `"recipes"` or `"accelerate_configs"`.

    A wheel has it inside the package; a checkout that is installed as editable, beside the package.

    Raises:
        FileNotFoundError: if the installation lacks it.
    """
    for parent in (_PACKAGE, _PACKAGE.parent):
        if (parent / name).is_dir():
            return parent / name
    raise FileNotFoundError(
        f"This installation of hf-gradkit has no folder {name!r}. Install it again: pip install --force-reinstall "
        "hf-gradkit."
    )


def resources(folder: str) -> dict[str, Path]:
    """Return the YAML files of a folder by name: their path in it, without `.yaml`."""
    top = resource_folder(folder)
    return {path.relative_to(top).with_suffix("").as_posix(): path for path in sorted(top.rglob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """Return the file of a recipe, named like `"tiny/linupper/sft"`; `recipes/` before and `.yaml` after are optional.

    Raises:
        ValueError: if there is no such recipe; the message names the known ones.
    """
    known = resources("recipes")
    short = name.removeprefix("recipes/").removesuffix(".yaml")
    if short not in known:
        raise ValueError(f"There is no recipe {name!r}.{did_you_mean(short, known)} Recipes: {listing(known)}.")
    return known[short]


def find_accelerate_config(name: str) -> Path:
    """Return the file of a launch configuration: one of ours by name, such as `"multi_gpu"`, or any path.

    Raises:
        ValueError: if it is neither; the message names the known ones.
    """
    known = resources("accelerate_configs")
    if name in known:
        return known[name]
    if Path(name).is_file():
        return Path(name)
    raise ValueError(
        f"`accelerate_config` is {name!r}, which is neither a file nor a configuration that comes with hf-gradkit."
        f"{did_you_mean(name, known)} Known names: {listing(known)}."
    )
