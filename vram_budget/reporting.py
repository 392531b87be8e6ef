"""Prints all about one training step on one card: the verdict, and what would help."""

from collections.abc import Callable
from dataclasses import asdict

import pandas as pd
from transformers import PretrainedConfig

from .budget import LENGTHS, Budget, largest_batch, memory_savings, step_budget
from .cards import GTX_1650_TI, Card
from .tracing import Step, StepOptions

VERDICTS = {
    "fits": "it fits",
    "out of memory": "it does not fit: out of memory",
    "spills": "it spills: no error, but slow, for Windows puts the rest into the "
    "computer's memory",
}


def report(
    step: Step,
    config: PretrainedConfig,
    rows: int = 8,
    length: int = 512,
    options: StepOptions = StepOptions(),
    card: Card = GTX_1650_TI,
    system: str = "windows",
    in_parts: Callable[[int], Step] | None = None,
) -> dict:
    """Print whether a step fits a card, what one change saves, and the largest batches.

    The verdict comes at once; the tables take some seconds. The table of largest
    batches is only for ``StepOptions(scalable=True)``; otherwise ask `largest_batch`.

    Parameters
    ----------
    step : callable
        ``step(model, batch, optimizer)``: one training step, as for `trace`.
    config : transformers.PretrainedConfig
        Of the model.
    rows : int
        Of the batch.
    length : int
        Tokens per row, padding included.
    options : StepOptions
        How the step is run.
    card : Card
        The card that it has to fit.
    system : str
        "windows", "linux-desktop" or "linux".
    in_parts : callable, optional
        As for `memory_savings`.

    Returns
    -------
    dict
        Plain values, for JSON: those of the `Budget`, ``card``, ``system``,
        ``memory_savings``, and ``largest_batch``, a length -> rows (at worst, at best).

    Raises
    ------
    InvalidValue
        As for `step_budget`.
    """
    case = (step, config, rows, length, options, card, system)
    budget = step_budget(*case)
    name = f"{card.name}, {card.vram_gib:.2f} GiB"
    _print_verdict(budget, system)
    print(f"step       {rows} rows x {length} tokens, {options.precision}")
    print(f"card       {name}; {card.source}", flush=True)
    savings = memory_savings(*case, in_parts=in_parts).dropna().reset_index()
    print("\none change alone, in MiB:")
    print(savings.round().to_string(index=False), flush=True)
    largest = {}
    if options.scalable:
        for n in sorted(n for n in {*LENGTHS, length} if n <= length):
            largest[n] = largest_batch(step, config, n, options, card, system)
        table = pd.DataFrame(largest, index=["at worst", "at best"])
        print("\nlargest batch, by tokens per row:")
        print(table.T.to_string())
    return {
        **asdict(budget),
        "card": name,
        "system": system,
        "memory_savings": savings.to_dict("records"),
        "largest_batch": largest,
    }


def _print_verdict(budget: Budget, system: str) -> None:
    """Print whether it fits, what it needs, and what is left for it."""
    outcome = VERDICTS[budget.verdict]
    if budget.at_best != budget.verdict:
        outcome += f"; if {system} takes little of the card, it fits"
    least, most = budget.usable
    print(f"verdict    {outcome}")
    about = " (an estimate)" * (least < most)  # or free on a card in this machine
    print(f"left       {least:,.0f} to {most:,.0f} MiB for PyTorch{about}")
    print(
        f"needs      {budget.reserved:,.0f} MiB reserved; {budget.allocated:,.0f} "
        f"allocated at the peak: {budget.peak}"
    )
