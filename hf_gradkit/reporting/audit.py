"""Pictures of privacy audits: ROC on logarithmic axes, and leakage over training, also beside other runs."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .figures import COLOURS, _coloured, _panels
from .json_lines import read_json_lines
from .runs import AUDIT, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MEMBERSHIP, EXTRACTION = "membership.json", "extraction.json"
LOG = "privacy_audit.jsonl"  # of PrivacyAuditCallback


def roc_figure(figures: dict[str, Any]) -> "Figure":
    """Every attack's ROC, both axes logarithmic: what matters are the low false positive rates."""
    figure, (axis,) = _panels(1)
    _log_axes(axis, 1 / figures["non_members"])
    for i, (name, of) in enumerate(figures["attacks"].items()):
        style = "-" if i < len(COLOURS) else "--"
        _plot_roc(axis, of["roc"], figures["non_members"], COLOURS[i % len(COLOURS)], name, style)
    axis.legend(frameon=False, fontsize=7, loc="lower right")
    return figure


def auc_figure(curve: list[dict[str, Any]]) -> "Figure":
    """AUC of each attack over training, and beside it what the model is worth: the loss of both sides."""
    figure, (left, right) = _panels(2)
    steps = [point["step"] for point in curve]
    left.set_title("AUC")
    left.axhline(0.5, color=COLOURS[5], linewidth=0.8)
    for i, name in enumerate(curve[0]["attacks"]):
        values = [point["attacks"][name]["auc"] for point in curve]
        left.plot(steps, values, marker=".", color=COLOURS[i % len(COLOURS)], label=name)
    right.set_title("loss")
    right.set_ylabel("nats per token")
    for key, words, colour in (("member_loss", "members", COLOURS[1]), ("held_out_loss", "held out", COLOURS[0])):
        right.plot(steps, [point["utility"][key] for point in curve], marker=".", color=colour, label=words)
    for axis in (left, right):
        axis.legend(frameon=False, fontsize=7)
    return figure


def extraction_figure(curve: list[dict[str, Any]]) -> "Figure":
    """Share of suffixes that greedy decoding writes out, over training, with exact intervals."""
    figure, (axis,) = _panels(1)
    axis.set_title("suffixes written by greedy decoding")
    steps = [point["step"] for point in curve]
    for side, words, colour in (("members", "members", COLOURS[1]), ("non_members", "held out", COLOURS[0])):
        shares = [point[side]["greedy"] for point in curve]
        axis.plot(steps, [of["share"] for of in shares], marker=".", color=colour, label=words)
        low, high = zip(*(of["exact"] for of in shares), strict=True)
        axis.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
    axis.set_ylim(0, 1.02)
    axis.legend(frameon=False)
    return figure


def audit_figure(runs: list[Run]) -> "Figure | None":
    """Of each run the ROC of its strongest attack, and the AUC over training; None where nothing was audited."""
    audited = [(run, colour, read_membership(run.folder)) for run, colour in _coloured(runs)]
    logged = [(run, colour, read_audit_log(run.folder)) for run, colour in _coloured(runs)]
    audited = [entry for entry in audited if entry[2] is not None]
    logged = [entry for entry in logged if entry[2]]
    if not audited and not logged:
        return None
    figure, (left, right) = _panels(2)
    if audited:
        _log_axes(left, min(1 / figures["non_members"] for _, _, figures in audited))
        for run, colour, figures in audited:
            name = max(figures["attacks"], key=lambda attack: abs(figures["attacks"][attack]["auc"] - 0.5))
            stamp = " (confounded)" * figures["confounded"] + " (unsound)" * (figures["unsound"] is not None)
            label = f"{run.name}: {name}{stamp}"
            _plot_roc(left, figures["attacks"][name]["roc"], figures["non_members"], colour, label)
        left.legend(frameon=False, fontsize=7, loc="lower right")
    right.set_title("AUC over training")
    right.axhline(0.5, color=COLOURS[5], linewidth=0.8)
    for run, colour, lines in logged:
        names = sorted({key for line in lines for key in line if key.startswith("privacy_audit/auc_")})
        for name, style in zip(names, ("-", "--", ":", "-.") * len(names), strict=False):
            points = [(line["step"], line[name]) for line in lines if name in line]
            label = f"{run.name}: {name.removeprefix('privacy_audit/auc_')}"
            right.plot(*zip(*points, strict=True), style, color=colour, marker=".", label=label)
        right.legend(frameon=False, fontsize=7)
    return figure


def read_membership(folder: str | Path) -> dict[str, Any] | None:
    """Return the figures of the membership audit in a model's folder, or None."""
    path = Path(folder) / AUDIT / MEMBERSHIP
    return json.loads(path.read_text()) if path.is_file() else None


def read_audit_log(folder: str | Path) -> list[dict[str, Any]]:
    """Return the lines that PrivacyAuditCallback wrote, one an audit; none if there is no file."""
    return read_json_lines(Path(folder) / LOG)


def _log_axes(axis: "Axes", smallest: float) -> None:
    axis.set_title("members that are recognised")
    axis.set_xlabel("false positive rate")
    axis.set_ylabel("true positive rate")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlim(smallest / 1.3, 1.05)
    axis.set_ylim(smallest / 1.3, 1.05)
    axis.plot([smallest / 2, 1], [smallest / 2, 1], color=COLOURS[5], linewidth=0.8, label="guessing")


def _plot_roc(axis: "Axes", roc: dict, non_members: int, colour: str, label: str, style: str = "-") -> None:
    """Draw a ROC; what is true at no false positive is drawn at half of one, where a logarithm has a place for it."""
    fpr = [max(value, 0.5 / non_members) for value in roc["fpr"]]
    axis.plot(fpr, roc["tpr"], style, color=colour, label=label, drawstyle="steps-post", linewidth=1.3)
