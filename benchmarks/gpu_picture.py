"""Draws GPU.png, the picture of README: a card's facts, and its memory in a step.

    python benchmarks/gpu_picture.py [--card "GTX 1650 Ti"] [--system windows] GPU.png

The bars are predictions for the recipe's batches of 8 rows in fp32.
"""

import argparse
from pathlib import Path

from matplotlib import pyplot as plt

from agnews_helpers import Recipe, config_for, training_step
from agnews_helpers.plots import PART_COLOURS, bars
from vram_budget import SYSTEMS_GIB, Card, budget_table, find_card

DARK_GREY = "#555555"  # for small text
NOTE = """\
Predicted. A bar that crosses its line spills (Windows) or is out of memory.
Card: {}."""


def gpu_picture(card: Card, system: str) -> plt.Figure:
    """Left, the card's facts; right, the memory of a training step."""
    recipe = Recipe()
    config = config_for(recipe.model)
    table = budget_table(
        training_step(), config, recipe.batch_size, card=card, system=system
    )
    limits = {"on the card": card.vram_gib}
    for name in sorted({"linux", system}):
        limits[f"left by {name}"] = card.vram_gib - SYSTEMS_GIB[name][1]
    parts = table[[*PART_COLOURS]] / 1024
    axes = bars(parts, "GiB", "{:.2f}", limits, stacked=True, colours=PART_COLOURS)
    axes.set_ylabel("attention, tokens per row")
    step = f"{Path(recipe.model).name}, batch size {recipe.batch_size}"
    axes.set_title(f"{step}, {recipe.precision}, Adam: one training step", loc="left")
    facts = [f"{name}: {value}" for name, value in card.facts()]
    words = "\n".join([card.name, "", *facts, "", NOTE.format(card.source)])
    axes.figure.set_size_inches(13.0, 4.6)
    axes.figure.get_layout_engine().set(rect=(0.4, 0, 0.6, 1))  # beside the facts
    axes.figure.text(0.01, 0.9, words, va="top")
    return axes.figure


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--card", default="GTX 1650 Ti")
    parser.add_argument("--system", default="windows", choices=list(SYSTEMS_GIB))
    parser.add_argument("file", type=Path, help="a .png, .pdf or .svg file")
    options = parser.parse_args(arguments)
    plt.switch_backend("Agg")  # draws without a screen
    card = find_card(options.card)
    gpu_picture(card, options.system).savefig(options.file, dpi=110)
    print(f"picture of the {card.name} in {options.file}")


if __name__ == "__main__":
    main()
