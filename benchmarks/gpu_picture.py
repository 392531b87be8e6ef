"""Draws GPU.png, the picture of README: a card's facts, and its memory in a step.

    python benchmarks/gpu_picture.py [--card "GTX 1650 Ti"] [--system windows] GPU.png

The bars are predictions for the recipe's batches of 8 rows in fp32.
"""

import argparse
from pathlib import Path

from matplotlib import pyplot as plt
from pandas import DataFrame

from agnews_helpers import Recipe, config_for, training_step
from agnews_helpers.plots import GREY, PART_COLOURS, RED
from vram_budget import SYSTEMS_GIB, Card, budget_table, find_card

COLOURS = PART_COLOURS | {"CUDA context": GREY}
DARK_GREY = "#555555"  # for small text
NOTE = "Predicted. A bar that crosses its line spills (Windows) or is out of memory."


def stacked(parts: DataFrame, limits: dict[str, float]) -> plt.Axes:
    """One bar for each row, a colour for each part, a line for each limit, in GiB."""
    _, axes = plt.subplots(figsize=(9.0, 6.4), layout="constrained")
    rows = parts.set_axis([f"{name}, {tokens}" for name, tokens in parts.index])
    look = {"width": 0.75, "color": COLOURS, "legend": False}
    rows.plot.barh(ax=axes, stacked=True, **look)
    totals = [f"{total:.2f}" for total in parts.sum(axis=1)]
    white = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    axes.bar_label(axes.containers[-1], totals, padding=3, bbox=white)
    for style, (name, gib) in zip(["--", ":", "-"], limits.items()):
        axes.axvline(gib, color=RED, linestyle=style, label=f"{name}, {gib:.3g}")
    axes.set(xlabel="GiB", ylabel="attention, tokens per row")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.1)
    axes.invert_yaxis()
    axes.figure.legend(loc="outside right center", frameon=False)
    return axes


def gpu_picture(card: Card, system: str) -> plt.Figure:
    """The memory of a training step, and below it the card's facts."""
    recipe = Recipe()
    config = config_for(recipe.model)
    table = budget_table(
        training_step(), config, recipe.batch_size, card=card, system=system
    )
    limits = {"the card": card.vram_gib}
    for name in sorted({"linux", system}):
        limits[f"left by {name.title()}"] = card.vram_gib - SYSTEMS_GIB[name][1]
    parts = table[[*COLOURS]] / 1024
    axes = stacked(parts, limits)
    step = f"{Path(recipe.model).name}, batch size {recipe.batch_size}"
    axes.set_title(f"{step}, {recipe.precision}, Adam: one training step", loc="left")
    facts = [f"{name}: {value}" for name, value in card.facts()]
    lines = [
        "   ".join(facts[:3]),
        "   ".join(facts[3:]),
        NOTE,
        f"Card: {card.source}.",
    ]
    axes.figure.suptitle(card.name, x=0.01, ha="left", weight="bold")
    axes.figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=10)
    return axes.figure


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--card", default="GTX 1650 Ti")
    parser.add_argument("--system", default="windows", choices=list(SYSTEMS_GIB))
    parser.add_argument("file", type=Path, help="a .png, .pdf or .svg file")
    options = parser.parse_args(arguments)
    plt.switch_backend("Agg")  # draws without a screen
    card = find_card(options.card)
    gpu_picture(card, options.system).savefig(options.file, dpi=160)
    print(f"picture of the {card.name} in {options.file}")


if __name__ == "__main__":
    main()
