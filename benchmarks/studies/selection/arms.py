"""The arms that the two preference experiments share: what each keeps, and how the library is asked for it."""

import argparse
import sys
from pathlib import Path
from typing import Any

from datasets import Dataset

from hf_gradkit.selection import build_selector

STUDIES = Path(__file__).resolve().parent.parent
SEEDS = [0, 1, 2, 3, 4]
# Name, selector, and which of FiFA's components are off.
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "random": ("random", {}),
    "fifa_modular": ("fifa", {}),
    "fifa_greedy": ("fifa", {"method": "greedy"}),
    "margin": ("fifa", {"quality": None, "embedder": None}),
    "quality": ("fifa", {"margin": None, "embedder": None}),
    "diversity": ("fifa", {"margin": None, "quality": None}),
}


def use(study: str) -> None:
    """Let the scripts of another study be imported."""
    sys.path.append(str(STUDIES / study))


def reading_arguments(description: str) -> argparse.Namespace:
    """Return the options of a script that reads the runs of an experiment: `output`, `seeds` and `folder`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--folder", type=Path, required=True)
    return parser.parse_args()


def names(fractions: list[float]) -> list[str]:
    """Return every arm's name: `full`, and each selection at each fraction."""
    return ["full", *(f"{arm}-{fraction}" for fraction in fractions for arm in ARMS)]


def keep(name: str, dataset: Dataset, policy: Path, seed: int, cache: Path) -> tuple[Dataset, dict]:
    """Return the pairs that an arm trains on, and the selection's report.

    Margins are the column `cross_fitted`; quality is the perplexity of the prompt under the reference policy;
    embeddings are hashed TF-IDF. Everything else is a default of the library.
    """
    if name == "full":
        return dataset, {}
    arm, _, fraction = name.rpartition("-")
    by, options = ARMS[arm]
    if by == "fifa":
        components = {
            "margin": {"by": "columns", "chosen": "cross_fitted"},
            "quality": {"by": "perplexity", "model": str(policy)},
            "embedder": "tfidf",
        }
        options = {**components, **options}
    selector = build_selector(
        by, {**options, "fraction": float(fraction), "seed": seed, "batch_size": 64, "cache_folder": cache}
    )
    result = selector.select(dataset)
    return result.dataset, result.report
