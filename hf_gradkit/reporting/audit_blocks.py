"""What a privacy audit's report says, as blocks of text, tables and pictures that a page and a Markdown file share.

Everything comes from an audit's figures; no text of an example is in them.
"""

from typing import Any

from .audit_words import advice, bounds, canary_sentence, extraction_findings, membership_findings, stamps
from .blocks import Block


def membership_blocks(figures: dict[str, Any]) -> list[Block]:
    """Return the report of a membership audit."""
    from .audit import auc_figure, roc_figure

    curve = figures.get("epochs") or []
    return [
        *_stamp_block(figures),
        Block("What leaks", tuple(membership_findings(figures))),
        Block(
            "Attacks",
            (
                "AUC is the chance that a random member scores higher than a random non-member; .5 is guessing, and "
                "an AUC below .5 tells members apart as well, read the other way. TPR at FPR is the share of members "
                "that are recognised when so many non-members are accused wrongly. Intervals are 95 %: bootstrap over "
                "documents for the AUC, exact (Clopper-Pearson) for the TPR. Grey rates need more non-members; grey "
                "differences may be none.",
            ),
            *_attack_table(figures),
            draw=lambda: roc_figure(figures),
        ),
        *([Block("Over training", (), *_curve_table(curve), draw=lambda: auc_figure(curve))] if curve else []),
        Block(
            "The gate: attacks that never see the model",
            (
                "If these could tell members from non-members, so could any attack, and the table above would measure "
                f"how the two sets differ. One fires at p = {figures['gate']['stamped_at']:g}. Intervals "
                f"({figures['gate']['level']:.1%}) and p values are corrected for the number of attacks.",
            ),
            ("blind attack", "AUC", "interval", "p", "fires"),
            tuple(
                (name, _number(of["auc"]), _interval(of["auc_interval"]), f"{of['p']:.2g}", _fires(of))
                for name, of in figures["gate"]["attacks"].items()
            ),
        ),
        Block("Utility", ("Mean loss over all label tokens, nats a token.",), *_utility_table(figures["utility"])),
        Block("What to change", tuple(advice(figures))),
        Block("How it was measured", (), ("setting", "value"), _settings(figures, MEMBERSHIP_SETTINGS)),
    ]


def extraction_blocks(figures: dict[str, Any]) -> list[Block]:
    """Return the report of an extraction audit."""
    from .audit import extraction_figure

    curve = figures.get("epochs") or []
    canaries = figures.get("canaries")
    return [
        *_stamp_block(figures),
        Block("What leaks", tuple(extraction_findings(figures))),
        Block(
            "Without sampling: (n, p)-discoverable extraction",
            (
                "Share of suffixes that appear among n samples with a chance of at least p, given their prefix; from "
                "one teacher-forced forward pass. Held-out examples say how much of it is not memorisation.",
            ),
            ("n", "p", "members", "interval", "held out", "interval"),
            tuple(
                (f"{a['n']}", f"{a['p']:g}", *_share(a), *_share(b))
                for a, b in zip(
                    figures["members"]["discoverable"], figures["non_members"]["discoverable"], strict=True
                )
            ),
        ),
        *([Block("What the model wrote", (), *_written_table(figures))] if figures["generations"] else []),
        *([Block("Canaries", (canary_sentence(canaries),))] if canaries else []),
        *([Block("Over training", (), *_extraction_curve(curve), lambda: extraction_figure(curve))] if curve else []),
        Block(
            "Utility",
            ("Mean loss over the tokens of the suffixes, nats a token.",),
            ("examples", "loss"),
            tuple((words, _number(figures[side]["loss"])) for side, words in SIDES.items()),
        ),
        Block("What to change", tuple(advice(figures))),
        Block("How it was measured", (), ("setting", "value"), _settings(figures, EXTRACTION_SETTINGS)),
    ]


def _fires(of: dict[str, Any]) -> str:
    return "YES" if of["fires"] else "nearly" if of["noted"] else "no"


def _stamp_block(figures: dict[str, Any]) -> list[Block]:
    text = stamps(figures)
    return [Block("Read this first", tuple(text))] if text else []


# ---- tables -----------------------------------------------------------------------------------------------------


def _attack_table(figures: dict[str, Any]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    attacks = figures["attacks"]
    alphas = list(next(iter(attacks.values()))["tpr"])
    baselines = [name for name in ("loss", "flora") if name in attacks]
    headings = (
        "attack",
        "AUC",
        "interval",
        *(f"above {b}" for b in baselines),
        *(f"TPR at {float(a):.1%} FPR" for a in alphas),
    )
    rows = []
    for name, of in sorted(attacks.items(), key=lambda pair: -pair[1]["auc"]):
        over = [_difference(of["over"].get(other)) for other in baselines]
        rates = [_rate(of["tpr"][alpha]) for alpha in alphas]
        rows.append((name, _number(of["auc"]), _interval(of["auc_interval"]), *over, *rates))
    return headings, tuple(rows)


def _rate(rate: dict[str, Any]) -> str:
    low, high = rate["exact"]
    shown = f"{rate['tpr']:.1%} [{low:.1%}, {high:.1%}]"
    return shown if rate["supported"] else f"~{shown}"


def _difference(over: dict[str, Any] | None) -> str:
    if over is None:
        return ""
    low, high = over["interval"]
    shown = f"{over['auc']:+.3f} [{low:+.3f}, {high:+.3f}]"
    return shown if not low <= 0 <= high else f"~{shown}"


def _curve_table(curve: list[dict[str, Any]]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    names = list(curve[0]["attacks"])
    headings = ("step", "epoch", *(f"AUC {name}" for name in names), "member loss", "held-out loss")
    rows = [
        (
            f"{point['step']}",
            "" if point["epoch"] is None else f"{point['epoch']:.2f}",
            *(_number(point["attacks"][name]["auc"]) for name in names),
            _number(point["utility"]["member_loss"]),
            _number(point["utility"]["held_out_loss"]),
        )
        for point in curve
    ]
    return headings, tuple(rows)


def _extraction_curve(curve: list[dict[str, Any]]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    rows = [
        (
            f"{point['step']}",
            "" if point["epoch"] is None else f"{point['epoch']:.2f}",
            *_share(point["members"]["greedy"]),
            *_share(point["non_members"]["greedy"]),
            *(_number(point[side]["loss"]) for side in SIDES),
        )
        for point in curve
    ]
    losses = ("member loss", "held-out loss")
    return ("step", "epoch", "greedy, members", "interval", "greedy, held out", "interval", *losses), tuple(rows)


def _written_table(figures: dict[str, Any]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    members, others = figures["members"], figures["non_members"]
    names = {"greedy": "greedy guess", "top": "top-ranked guess", "any": "any guess"}
    rows = [
        (f"verbatim, {words}", *_share(members["verbatim"][kind]), *_share(others["verbatim"][kind]))
        for kind, words in names.items()
    ]
    measures = {
        "hamming": "Hamming distance, share of tokens",
        "edit": "edit distance, share of tokens",
        "longest_run": "longest common run, share of tokens",
        "recall_at_errors": "recall at 100 errors",
    }
    rows += [(words, _number(members[key]), "", _number(others[key]), "") for key, words in measures.items()]
    return ("figure", "members", "interval", "held out", "interval"), tuple(rows)


def _utility_table(utility: dict[str, float]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    def of(name: str) -> str:
        return _number(utility[name]) if name in utility else ""

    rows = (
        ("members", of("member_loss"), of("reference_member_loss")),
        ("held out", of("held_out_loss"), of("reference_held_out_loss")),
    )
    return ("examples", "loss", "before fine-tuning"), rows


SIDES = {"members": "members", "non_members": "held out"}
MEMBERSHIP_SETTINGS = ("model", "reference", "members", "non_members", "documents", "bootstrap_rounds", "seed")
EXTRACTION_SETTINGS = (
    *("model", "reference", "prefix_tokens", "suffix_tokens", "generations", "sampling", "ranked_by", "too_short"),
    "seed",
)


def _settings(figures: dict[str, Any], names: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    def shown(value: Any) -> str:
        if isinstance(value, dict) and "prompts" in value:
            return str(value["prompts"])
        return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)

    return tuple((name, shown(figures[name])) for name in names)


def _number(value: float) -> str:
    return f"{value:.3f}"


def _interval(interval: Any) -> str:
    return f"[{interval[0]:.3f}, {interval[1]:.3f}]"


def _share(share: dict[str, Any]) -> tuple[str, str]:
    return f"{share['share']:.1%}", bounds(share)
