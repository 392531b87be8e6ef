"""Every figure of the notebooks: each function draws one and returns its axes.

The colours are Okabe and Ito's, which people with colour-vision deficiency can tell
apart.
"""

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from pandas import DataFrame, Series
from sklearn.metrics import ConfusionMatrixDisplay

from .evaluation import Report

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
        "legend.frameon": False,
        "text.parse_math": False,  # the dollar signs of a price are no formula
    }
)
# Behind a text that a line may run through
WHITE = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
BOX = {"facecolor": "white", "edgecolor": BLUE, "boxstyle": "round,pad=0.5"}
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
        figsize=(8.0, 1.0 + 0.2 * entries + 0.16 * bars_drawn),
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


@_styled
def diagram(boxes: dict, arrows: list) -> Axes:
    """Draw boxes with their names and words, and arrows between them.

    Parameters
    ----------
    boxes : dict of tuple
        x, y and words of each box, by its name; neighbours are 1 apart.
    arrows : list of tuple
        Name of the box where an arrow starts, and of the one where it ends.

    Returns
    -------
    Axes
        The axes.
    """
    places = np.array([box[:2] for box in boxes.values()])
    left, bottom = places.min(axis=0) - 0.5
    right, top = places.max(axis=0) + 0.5
    _, axes = plt.subplots(figsize=(10.0, 1.5 * (top - bottom)))
    axes.set(xlim=(left, right), ylim=(bottom, top))
    axes.set_axis_off()
    outlines = {}
    for name, (x, y, words) in boxes.items():
        text = f"{name}\n\n{words}"
        box = axes.text(x, y, text, fontsize=9, ha="center", va="center", bbox=BOX)
        outlines[name] = box.get_bbox_patch()
    for start, end in arrows:
        arrow = {
            "arrowstyle": "-|>",
            "color": ORANGE,
            "patchA": outlines[start],
            "patchB": outlines[end],
        }
        axes.annotate("", boxes[end][:2], boxes[start][:2], arrowprops=arrow)
    return axes


@_styled
def confusion_matrix(report: Report) -> Axes:
    """Draw the counts of a confusion matrix, shaded by the share of the true class.

    Parameters
    ----------
    report : Report
        The result of `evaluate` or `score`.

    Returns
    -------
    Axes
        The axes; each row is a true class, each column a predicted one.
    """
    counts = report.confusion
    shares = counts.div(counts.sum(axis=1).clip(lower=1), axis="index")
    side = 0.6 * len(counts)  # inches
    _, axes = plt.subplots(figsize=(2.4 + side, 1.8 + side))
    display = ConfusionMatrixDisplay(shares.to_numpy(), display_labels=counts.index)
    display.plot(
        ax=axes,
        cmap="Blues",
        im_kw={"vmin": 0, "vmax": 1},
        colorbar=False,
        xticks_rotation="vertical",
    )
    for text, count in zip(display.text_.flat, counts.to_numpy().flat):
        text.set_text(f"{count:,}")
    axes.set_title(f"{report.accuracy:.1%} of {report.rows:,} rows right")
    return axes
