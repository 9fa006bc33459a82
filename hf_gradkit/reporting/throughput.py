"""How fast runs were, from the figures that transformers' Trainer logs at the end of training."""

from .blocks import Block
from .runs import Run

# Heading, and the key of the last log of training.
COLUMNS = {
    "training": "train_runtime",
    "examples a second": "train_samples_per_second",
    "steps a second": "train_steps_per_second",
}


def throughput_block(runs: list[Run]) -> list[Block]:
    """Return the table of the runs that have ended; none if no run has.

    Tokens a second are those that TRL counted (`num_tokens`, padding left out) over the whole training time.
    """
    shown = [run for run in runs if run.last("train_runtime")]
    if not shown:
        return []
    rows = []
    for run in shown:
        values = [run.last(key) for key in COLUMNS.values()]
        tokens = run.last("num_tokens")
        processes = run.info.get("processes")
        rows.append(
            (
                run.name,
                f"{values[0]:.1f} s",
                *("" if value is None else f"{value:.3g}" for value in values[1:]),
                "" if tokens is None else f"{tokens / values[0]:.4g}",
                "" if processes is None else f"{processes} ({run.info['distributed_type']})",
            )
        )
    headings = ("run", *COLUMNS, "tokens a second", "processes")
    text = (
        "Over the whole training time, evaluations and saves included; all processes together. Compare runs of one "
        "machine; the time of a run that was resumed is that of its last part, so its rates are too high."
    )
    return [Block("Throughput", (text,), headings, tuple(rows))]
