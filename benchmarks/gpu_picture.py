"""Draws GPU.png, the picture of README: a card's facts, and its memory in a step.

    python benchmarks/gpu_picture.py [--card "GTX 1650 Ti"] [--system windows] GPU.png

The bars are predictions for the recipe's batches of 8 rows in fp32.
"""

import argparse
from pathlib import Path

from matplotlib import pyplot as plt

from agnews_helpers import Recipe, config_for, training_step
from agnews_helpers.plots import vram_bars
from vram_budget import SYSTEMS_GIB, Card, budget_table, find_card

DARK_GREY = "#555555"  # for small text
NOTE = """\
Predicted. A bar above its line spills (Windows) or is out of memory.
Card: {}."""


def gpu_picture(card: Card, system: str) -> plt.Figure:
    """Left, the card's facts; right, the memory of a training step."""
    recipe = Recipe()
    config = config_for(recipe.model)
    table = budget_table(
        training_step(), config, recipe.batch_size, card=card, system=system
    )
    figure = plt.figure(figsize=(11.0, 4.6), layout="constrained")
    with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.5))
    left.set_axis_off()
    left.set_title(card.name, loc="left", fontweight="bold", fontsize=13)
    for i, (name, value) in enumerate(card.facts()):
        left.text(0.0, 0.9 - 0.11 * i, name, color=DARK_GREY)
        left.text(0.5, 0.9 - 0.11 * i, value)
    note = NOTE.format(card.source)
    left.text(0.0, 0.02, note, color=DARK_GREY, fontsize=9, va="bottom")
    taken = {name: SYSTEMS_GIB[name][1] for name in sorted({"linux", system})}
    vram_bars(table, card.vram_gib, taken, right)
    step = f"{Path(recipe.model).name}, batch size {recipe.batch_size}"
    title = f"{step}, {recipe.precision}, Adam: one training step"
    right.set_title(title, loc="left")
    return figure


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
