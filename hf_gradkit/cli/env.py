"""`gradkit env`: what is installed and what this machine computes on."""

import argparse
import importlib.metadata
import os
import platform
import sys

from packaging.requirements import Requirement

from .._compat import untested_versions, versions

DISTRIBUTION = "hf-gradkit"
LIBRARIES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "deepspeed",
    "bitsandbytes",
    "matplotlib",
)


def main(argv: list[str] | None = None) -> int:
    """Print versions, devices, extras and what was not tested; return 0."""
    argparse.ArgumentParser(
        prog="gradkit env", description="Print versions, devices and which extras are installed."
    ).parse_args(argv)
    rows = {"python": platform.python_version(), "platform": platform.platform()}
    rows |= {name: version or "not installed" for name, version in versions((DISTRIBUTION, *LIBRARIES)).items()}
    rows |= {"processors": str(os.cpu_count()), "accelerators": _accelerators()}
    for name, missing in extras().items():
        lacking = f'missing {", ".join(missing)}: pip install "{DISTRIBUTION}[{name}]"'
        rows[f"extra {name}"] = lacking if missing else "installed"
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")
    for sentence in untested_versions():
        print(f"Not tested: {sentence}")
    return 0


def extras() -> dict[str, list[str]]:
    """Return, for each extra of this distribution, the requirements that are not installed."""
    requirements = [Requirement(text) for text in importlib.metadata.requires(DISTRIBUTION) or []]
    names = importlib.metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    return {
        extra: [
            requirement.name
            for requirement in requirements
            if requirement.marker is not None
            and requirement.marker.evaluate({"extra": extra})
            and not requirement.marker.evaluate({"extra": ""})
            and not _is_installed(requirement)
        ]
        for extra in names
    }


def _is_installed(requirement: Requirement) -> bool:
    if requirement.name == DISTRIBUTION:  # another extra of ours, which has a line of its own
        return True
    version = versions((requirement.name,))[requirement.name]
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def _accelerators() -> str:
    import torch

    if not torch.accelerator.is_available():
        return "none, training runs on the CPU"
    kind = torch.accelerator.current_accelerator().type
    count = torch.accelerator.device_count()
    if kind == "cuda":
        return ", ".join(torch.cuda.get_device_name(index) for index in range(count))
    return f"{count} x {kind}"


if __name__ == "__main__":
    sys.exit(main())
