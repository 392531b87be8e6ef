"""The bars of the notebooks, and the colours of all their figures.

The colours are Okabe and Ito's, which people with colour-vision deficiency can tell
apart.
"""

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from pandas import DataFrame, Series

BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
SKY, RED, YELLOW = "#56B4E9", "#D55E00", "#F0E442"
GREY, PALE = "#999999", "#D9D9D9"
COLOURS = [BLUE, ORANGE, GREEN, PURPLE, SKY, RED, YELLOW]
# One colour for each part of the memory, the same in every figure
PART_COLOURS = {
    "weights": BLUE,
    "gradients": SKY,
    "optimizer state": GREEN,
    "activations": ORANGE,
    "temporaries": YELLOW,
    "workspaces": PURPLE,
    "cached": PALE,
    "CUDA context": GREY,
}
_styled = plt.rc_context(
    {
        "axes.prop_cycle": plt.cycler(color=COLOURS),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.constrained_layout.use": True,
        "font.size": 13,  # read at half the width, on a phone
        "legend.frameon": False,
        "text.parse_math": False,  # the dollar signs of a price are no formula
    }
)
# Behind a text that a line may run through
WHITE = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
OUTSIDE = "outside right center"  # the place of a legend


@_styled
def bars(
    values: Series | DataFrame,
    unit: str,
    fmt: str = "{:z,.2f}",
    limits: dict | None = None,
    stacked: bool = False,
    colours: dict | None = None,
) -> Axes:
    """Draw horizontal bars with their numbers.

    Parameters
    ----------
    values : Series or DataFrame
        One bar for each row. A DataFrame gives one group of bars for each row, with a
        bar for each column.
    unit : str
        Label of the horizontal axis: what is counted or measured.
    fmt : str
        Format of the numbers; empty for none.
    limits : dict of float or None
        Where to draw a line, by its name in the legend; at most three.
    stacked : bool
        Whether the bars of a group stand one after the other, with their sum.
    colours : dict of str or None
        The colour of each column.

    Returns
    -------
    Axes
        The axes.
    """
    table = DataFrame(values)
    columns = len(table.columns)
    bars_drawn = len(table) if stacked else table.size
    entries = max(len(table), columns)  # a legend may be taller than the bars
    axes = table.plot.barh(
        figsize=(6.4, 1.0 + 0.24 * entries + 0.2 * bars_drawn),
        width=0.8,
        stacked=stacked,
        color=colours,
        colormap="tab20" if columns > len(COLOURS) and not colours else None,
        xlabel=unit,
        legend=False,
    )
    for group in axes.containers[-1:] if stacked else axes.containers:
        numbers = table.sum(axis=1) if stacked else group.datavalues
        axes.bar_label(group, map(fmt.format, numbers), padding=3, bbox=WHITE)
    for style, (name, place) in zip(["--", ":", "-"], (limits or {}).items()):
        label = f"{name}, {place:.3g}"
        axes.axvline(place, color=RED, linestyle=style, label=label)
    axes.margins(x=0.1)
    axes.invert_yaxis()
    if columns > 1:
        axes.figure.legend(loc=OUTSIDE)
    return axes
