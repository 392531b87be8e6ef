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


@_styled
def bars(values: Series | DataFrame, unit: str, fmt: str = "{:z,.2f}") -> Axes:
    """Draw horizontal bars with their numbers.

    Parameters
    ----------
    values : Series or DataFrame
        One bar for each row. A DataFrame gives one group of bars for each row, with a
        bar for each column.
    unit : str
        Label of the horizontal axis: what is counted or measured.
    fmt : str
        Format of the numbers.

    Returns
    -------
    Axes
        The axes.
    """
    table = DataFrame(values)
    height = 1.6 + 0.3 * table.size
    axes = table.plot.barh(figsize=(6.4, height), width=0.8, xlabel=unit, legend=False)
    for group in axes.containers:
        axes.bar_label(group, map(fmt.format, group.datavalues), padding=3)
    axes.margins(x=0.15)
    axes.invert_yaxis()
    if len(table.columns) > 1:
        axes.figure.legend(loc="outside lower center")
    return axes
