"""What margins say at a glance: figures for `scores.json` and a histogram."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..weighting import fit_temperature


def summarize(margins: np.ndarray) -> dict[str, Any]:
    """Return the figures of reward margins. (n,)

    - `agreement`: share of pairs on which the reward model prefers the chosen completion;
    - `mean_margin`, `std_margin`: of the raw margins;
    - `temperature`: what margins must be divided by to be log-odds of the labels, or None where the fit has no end.
    """
    try:
        temperature = float(fit_temperature(torch.from_numpy(margins)))
    except ValueError:  # such as margins that all agree with the labels
        temperature = None
    return {
        "rows": len(margins),
        "agreement": float((margins > 0).mean()),
        "mean_margin": float(margins.mean()),
        "std_margin": float(margins.std()),
        "temperature": temperature,
    }


def draw_margins(margins: np.ndarray, path: Path) -> bool:
    """Write a histogram of the margins, and return whether matplotlib is there to do it."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axis = figure.subplots()
    axis.hist(margins, bins=min(60, max(10, len(margins) // 20)), color="#3b6fb6")
    axis.axvline(0, color="#4d4d4d", linewidth=1)
    axis.set_xlabel("reward margin: chosen minus rejected")
    axis.set_ylabel("pairs")
    axis.set_title(f"the reward model agrees with {(margins > 0).mean():.1%} of the labels")
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    return True
