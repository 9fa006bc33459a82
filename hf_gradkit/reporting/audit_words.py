"""What a privacy audit found, in sentences: how sound it is, what leaks, how sure that is, and what to change."""

from typing import Any


def stamps(figures: dict[str, Any]) -> list[str]:
    """Return why the figures must not be believed, if they must not."""
    text = []
    if figures.get("unsound"):
        text.append(f"UNSOUND. {figures['unsound']}")
    if figures.get("confounded"):
        fired = [name for name, of in figures["gate"]["attacks"].items() if of["fires"]]
        text.append(
            f"CONFOUNDED. Members and non-members can be told apart without the model ({', '.join(fired)}), so the "
            "figures below do not say what the model gives away. Hold examples out at random, and prepare both sides "
            "alike."
        )
    return text


def strongest(figures: dict[str, Any]) -> str:
    """Return the attack with the AUC that lies farthest from .5."""
    return max(figures["attacks"], key=lambda name: abs(figures["attacks"][name]["auc"] - 0.5))


def membership_findings(figures: dict[str, Any]) -> list[str]:
    """Return the sentences that sum a membership audit up."""
    name = strongest(figures)
    best = figures["attacks"][name]
    low, high = best["auc_interval"]
    found = [
        f"The strongest attack is {name}: AUC {best['auc']:.3f} [{low:.3f}, {high:.3f}], over {figures['members']} "
        f"members and {figures['non_members']} non-members."
    ]
    utility = figures["utility"]
    before = f" ({utility['reference_held_out_loss']:.3f} before)" if "reference_held_out_loss" in utility else ""
    found.append(
        f"What the model is worth: its loss on held-out examples is {utility['held_out_loss']:.3f} nats a token"
        f"{before}, on members {utility['member_loss']:.3f}."
    )
    rates = [(float(alpha), of) for alpha, of in best["tpr"].items() if of["supported"]]
    if rates:
        alpha, rate = min(rates, key=lambda pair: pair[0])
        found.append(
            f"At a false positive rate of {alpha:.1%} it recognises {rate['tpr']:.1%} of the members "
            f"[{rate['exact'][0]:.1%}, {rate['exact'][1]:.1%}]; guessing would recognise {alpha:.1%}."
        )
    if not any(of["leaks"] for of in figures["attacks"].values()):
        found.append("No attack is better than guessing by its interval. That is no proof that none could be.")
    elif best["auc"] < 0.5:
        found.append("It orders members below non-members; read the other way, it tells them apart as well.")
    gate = figures["gate"]
    noted = [f"{name}, p = {of['p']:.2g}" for name, of in gate["attacks"].items() if of["noted"]]
    if noted and not figures["confounded"]:
        found.append(
            f"A blind attack does a little better than guessing ({'; '.join(noted)}). So it is in one clean audit in "
            f"{1 / gate['noted_at']:.0f}; an attack on the model must do better than that one."
        )
    doubtful = {name: count for name, count in figures["doubtful"].items() if count}
    for attack, count in doubtful.items():
        found.append(
            f"For {count} examples the reference's loss is below .05 nats a token, so their {attack} score says "
            "little."
        )
    return found


def extraction_findings(figures: dict[str, Any]) -> list[str]:
    """Return the sentences that sum an extraction audit up."""
    members, others = figures["members"], figures["non_members"]
    found = [
        f"Given {figures['prefix_tokens']} tokens, greedy decoding writes the next {figures['suffix_tokens']} of "
        f"{members['greedy']['share']:.1%} of the members {bounds(members['greedy'])}, and of "
        f"{others['greedy']['share']:.1%} of held-out examples {bounds(others['greedy'])}."
    ]
    found.append(
        f"What the model is worth: its loss on held-out suffixes is {others['loss']:.3f} nats a token, on members' "
        f"{members['loss']:.3f}."
    )
    if "verbatim" in members:
        top, base = members["verbatim"]["top"], others["verbatim"]["top"]
        found.append(
            f"The guess that {figures['ranked_by']} ranks first among {figures['generations'] + 1} is right for "
            f"{top['share']:.1%} of the members {bounds(top)}, and for {base['share']:.1%} of held-out examples."
        )
    half = members["samples_for_half"]["tenth"]
    if half is not None:
        found.append(f"The easiest tenth of the members needs at most {half:.0f} samples for an even chance each.")
    if figures["too_short"]:
        found.append(f"{figures['too_short']} examples were too short for the prefix and were left out.")
    return found


def canary_sentence(canaries: dict[str, Any]) -> str:
    """Return what the exposure of canaries is, and what it would be without training on them."""
    target = canaries["target"]
    text = (
        f"{canaries['canaries']} canaries, each among {canaries['alternatives']} others: mean exposure "
        f"{target['mean']:.2f} bits of at most {canaries['largest']:.2f}, median {target['median']:.2f}. A model that "
        "has not seen them gives about 1.4 on average."
    )
    if "reference" in canaries:
        text += f" Before fine-tuning: mean {canaries['reference']['mean']:.2f}."
    return text


def advice(figures: dict[str, Any]) -> list[str]:
    """Return what a person can do about what was found."""
    if figures.get("unsound") or figures.get("confounded"):
        return [
            "Make the audit sound first: hold examples out at random before training (`gradkit audit hold_out`), "
            "train on the others, and audit again."
        ]
    if figures["audit"] == "membership":
        leaks = any(of["leaks"] for of in figures["attacks"].values())
    else:
        leaks = figures["members"]["greedy"]["exact"][0] > figures["non_members"]["greedy"]["exact"][1]
    if not leaks:
        return [
            "Nothing was found to change. The audit bounds these attacks on these examples; stronger ones may exist."
        ]
    return [
        "Before publishing: train for fewer epochs (audit each with `checkpoints`), since every further pass over the "
        "same examples is remembered; choose the epoch where the held-out loss is lowest, or earlier.",
        "Remove duplicates and near-duplicates, which are memorised first. Remove or mask secrets: what is not in the "
        "data cannot leak.",
        "Try a smaller LoRA rank, dropout or weight decay, and compare leakage and held-out loss side by side.",
        "None of these is a guarantee. Where one is needed, train with differential privacy.",
    ]


def bounds(share: dict[str, Any]) -> str:
    """Return the exact interval of a share."""
    return f"[{share['exact'][0]:.1%}, {share['exact'][1]:.1%}]"
