"""The sections of a page of runs: what each shows, and the figure or table it shows it in."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from .audit import audit_figure, read_membership
from .audit_words import membership_findings, stamps
from .blocks import Block
from .consistency import consistency_figure, consistency_findings
from .entanglement import entanglement_figure
from .figures import (
    beta_figure,
    drift_figure,
    group_figure,
    implicit_reward_figure,
    loss_figure,
    margin_figure,
    reward_model_figure,
    weight_figure,
)
from .gradient_statistics import gradient_figure
from .runs import Run
from .selection import headline, sentences
from .selection_files import read_filter
from .throughput import throughput_block

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A section with a figure: title, what one sees, and the figure, which is None where the runs have nothing to show.
Section = tuple[str, str, Callable[[list[Run]], "Figure | None"]]
SECTIONS: list[Section] = [
    (
        "Losses",
        "Training loss without weights, so that runs can be compared, and validation loss. Where pairs were weighted "
        "or trained on one of hf_gradkit's objectives, the training loss shown is their plain DPO loss; validation is "
        "of what was optimised, without weights.",
        loss_figure,
    ),
    (
        "Weights",
        "How many of the compared examples the weights leave effective, and how far weights spread. Mean weight far "
        "from 1 changes the size of the steps.",
        weight_figure,
    ),
    ("Groups", "Loss and weight of each group of the group column, over all processes.", group_figure),
]
# Sections that are left out where the runs have nothing to show.
FURTHER_SECTIONS: list[Section] = [
    (
        "Implicit rewards",
        "What the policy has learned of the preferences: beta times the log-probability that it gives an answer over "
        "the reference's, and how often the chosen answer's is the larger one.",
        implicit_reward_figure,
    ),
    (
        "Drift of log-probabilities",
        "How likely the answers have become, compared with the reference. Where the chosen answers' line falls, the "
        "policy prefers them only because the rejected ones fall faster, and moves to answers that no pair contains.",
        drift_figure,
    ),
    (
        "Reward margins",
        "What MADPO weighs by: the margins of the reward model, divided by the fitted temperature. An agreement of "
        "nearly 1 is one of a model that has seen these pairs.",
        margin_figure,
    ),
    (
        "beta-DPO",
        "The beta that each micro-batch's margins set, and the moving mean and standard deviation that it follows.",
        beta_figure,
    ),
    (
        "Gradient entanglement",
        "Where the monitored pairs lie: the cosine of the chosen and the rejected answer's gradients, and how much "
        "longer the second is. In the upper region both answers become less likely, in the lower one more likely.",
        entanglement_figure,
    ),
    (
        "Gradients of examples",
        "How long the examples' gradients are, and how they differ. Where the noise scale lies far above the batch, "
        "larger batches still pay; far below it, they do not. Sources with a cosine below zero undo each other.",
        gradient_figure,
    ),
    (
        "Consistency of workers",
        "Whether data-parallel workers train on the same thing, which averaging hides. Judge each line by the dashed "
        "one: what a healthy run of this batch and noise has. Crosses: rows that two workers have both seen.",
        consistency_figure,
    ),
    (
        "Privacy audit",
        "How well an attacker tells the examples that were trained on from those that were held out: the strongest "
        "attack of `gradkit audit membership`, and the AUC over training where PrivacyAuditCallback watched it. The "
        "line of guessing is what should not be left.",
        audit_figure,
    ),
    (
        "Reward model",
        "How many pairs the reward model orders as they are labelled, and how far apart it puts their answers.",
        reward_model_figure,
    ),
]
NOTHING = "~These runs logged nothing for this section."


def section_blocks(runs: list[Run]) -> list[Block]:
    """Return the sections of one or several runs."""
    blocks = []
    for section in (*SECTIONS, *FURTHER_SECTIONS):
        title, text, draw = section
        figure = draw(runs)
        if figure is not None:
            said = FINDINGS[draw](runs) if draw in FINDINGS else []
            blocks.append(Block(title, (text, *said), draw=partial(_given, figure)))
        elif section in SECTIONS and any(run.history for run in runs):
            blocks.append(Block(title, (text, NOTHING)))
    return [*blocks, *_filter_block(runs), *throughput_block(runs)]


def _given(figure: "Figure") -> "Figure":
    return figure


def _audit_findings(runs: list[Run]) -> list[str]:
    said = []
    for run in runs:
        found = read_membership(run.folder)
        if found is not None:
            said += [f"{run.name}: {sentence}" for sentence in (*stamps(found), *membership_findings(found))]
    return said


FINDINGS = {audit_figure: _audit_findings, consistency_figure: consistency_findings}


def _filter_block(runs: list[Run]) -> list[Block]:
    """What `data_filter` kept of each run's training pairs."""
    said = []
    for run in runs:
        report = read_filter(run.folder)
        if report is not None:
            said += [f"{run.name}: kept {headline(report)}.", *sentences(report)]
    return [Block("Data filter", tuple(said))] if said else []
