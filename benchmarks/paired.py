"""Compare contenders fairly, for the scripts that do: a laptop's speed drifts.

In each round every contender is measured once, in an order of its own; ratios are those
of two measurements of the same round.
"""

import random
from collections.abc import Iterable

import pandas as pd


def order_of(contenders: Iterable[str], number: int) -> list[str]:
    """Return the order of a round: random, but the same in each call."""
    contenders = list(contenders)
    return random.Random(number).sample(contenders, len(contenders))


def compared(seconds: pd.DataFrame, first: str) -> pd.DataFrame:
    """Tabulate seconds, and how many times as long as `first` each contender takes.

    `seconds` has a row per round and a column per contender. The result has a row per
    contender: median, least and most of the rounds.
    """
    tables = {"seconds": seconds, "times": seconds.div(seconds[first], axis=0)}
    columns = {}
    for name, table in tables.items():
        columns[name] = table.median()
        columns[f"{name}_least"] = table.min()
        columns[f"{name}_most"] = table.max()
    return pd.DataFrame(columns)
