"""Every figure of the notebooks: each function draws one and returns its axes.

The colours are Okabe and Ito's, which people with colour-vision deficiency can tell
apart.
"""

import math

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from pandas import DataFrame, Series
from sklearn.metrics import ConfusionMatrixDisplay

from .evaluation import Report
from .runs import Run

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
def masks(panels: dict, unit: str = "row") -> np.ndarray:
    """Draw arrays of 0 and 1, such as attention masks, on one scale.

    Parameters
    ----------
    panels : dict of np.ndarray
        Title and array, [rows, tokens], of each panel. 1 is blue, 0 is grey.
    unit : str
        What a row of the arrays is.

    Returns
    -------
    np.ndarray
        The axes, from top to bottom.
    """
    _, column = plt.subplots(
        len(panels),
        figsize=(9.0, 0.7 + 1.1 * len(panels)),
        sharex=True,
        squeeze=False,
    )
    for axes, (title, mask) in zip(column.flat, panels.items()):
        axes.pcolormesh(mask, cmap=ListedColormap([PALE, BLUE]), vmin=0, vmax=1)
        axes.set_title(title, loc="left")
        axes.set(ylabel=f"{len(mask)} {unit}s", yticks=[])
        axes.invert_yaxis()
    axes.set_xlabel("position in tokens")
    return column.ravel()


@_styled
def bars(
    values: Series | DataFrame,
    unit: str,
    fmt: str = "{:z,.2f}",
    reference: float | None = None,
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
        Format of the numbers.
    reference : float or None
        Where to draw a dashed line.

    Returns
    -------
    Axes
        The axes.
    """
    table = DataFrame(values)
    axes = table.plot.barh(
        figsize=(7.5, 1.0 + 0.2 * len(table) + 0.16 * table.size),
        width=0.8,
        xlabel=unit,
        legend=False,
    )
    for group in axes.containers:
        axes.bar_label(group, fmt=fmt, padding=3, bbox=WHITE)
    if reference is not None:
        axes.axvline(reference, color=GREY, linestyle="--")
    axes.margins(x=0.1)
    axes.invert_yaxis()
    if len(table.columns) > 1:
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


def _mean_of_20(loss):
    """Smooth a curve: the mean of each step and the 19 before."""
    return loss.rolling(20, min_periods=1).mean()


@_styled
def training_curves(run: Run) -> np.ndarray:
    """Draw the loss of every step, the losses of each epoch, and the accuracy of each.

    Parameters
    ----------
    run : Run
        The result of `train`, finished or not.

    Returns
    -------
    np.ndarray
        The three axes, from left to right.
    """
    _, panels = plt.subplots(1, 3, figsize=(10.0, 3.2))
    left, middle, right = panels
    loss, epochs = run.steps["loss"], run.history
    left.plot(loss, color=SKY, linewidth=0.8, label="each step")
    left.plot(_mean_of_20(loss), label="mean of 20 steps")
    classes = run.model.config.num_labels
    left.axhline(
        math.log(classes),
        color=GREY,
        linestyle="--",
        label=f"guessing, ln {classes}",
    )
    middle.plot(epochs["train_loss"], "s-", label="training")
    middle.plot(epochs["validation_loss"], "^-", label="validation")
    right.plot(epochs["validation_accuracy"], "o-", color=GREEN, label="validation")
    left.set(title="Training loss", xlabel="step")
    middle.set_title("Loss by epoch")
    right.set(title="Accuracy by epoch", ylabel="accuracy", ylim=(0, 1.05))
    plt.setp(panels[:2], ylabel="loss in nats", ylim=(0, None))
    plt.setp(panels[1:], xlabel="epoch", xticks=epochs.index)
    for axes in panels:
        if run.best_epoch and axes is not left:
            axes.axvline(run.best_epoch, color=GREY, linestyle=":", label="epoch kept")
        axes.legend()
    return panels


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


@_styled
def gallery(losses: dict) -> np.ndarray:
    """Draw the losses of several recipes, each beside that of the first one in grey.

    Parameters
    ----------
    losses : dict of DataFrame
        The loss of every step, with one column per seed, by the title of its panel.
        Drawn is the mean over the seeds and over 20 steps.

    Returns
    -------
    np.ndarray
        The axes in reading order, four in a row.
    """
    curves = {}
    for title, table in losses.items():
        loss = _mean_of_20(table.mean(axis=1))
        curves[title] = loss.set_axis(100 * loss.index / loss.index.max())
    # Runs of different lengths have losses at different shares of their steps.
    table = DataFrame(curves).interpolate("index")
    axes = table.plot(
        subplots=True,
        layout=(-1, 4),
        figsize=(10.0, 0.5 * len(losses)),
        sharey=True,
        color=BLUE,
        title=[*losses],
        legend=False,
        xlabel="% of the steps",
        ylabel="loss in nats",
        ylim=(0, None),
    )
    for panel in axes.flat:
        panel.plot(table.iloc[:, 0], color=GREY, zorder=1)
    return axes.ravel()


@_styled
def probabilities(table: DataFrame) -> Axes:
    """Draw the class probabilities of a few texts as stacked bars.

    Parameters
    ----------
    table : DataFrame
        The result of `classify`: text, label, and ``probability_NAME`` for each class.

    Returns
    -------
    Axes
        The axes.
    """
    classes = table.iloc[:, 2:].set_axis(table["text"].str[:48])
    classes.columns = classes.columns.str.removeprefix("probability_")
    longest = max(len(classes), classes.columns.size / 2)  # of the bars and the legend
    axes = classes.plot.barh(
        figsize=(8.0, 0.9 + 0.42 * longest),
        stacked=True,
        width=0.7,
        edgecolor="white",
        colormap="tab20" if classes.columns.size > len(COLOURS) else None,
        xlabel="probability",
        xlim=(0, 1),
        legend=False,
    )
    axes.invert_yaxis()
    axes.figure.legend(loc=OUTSIDE)
    return axes


@_styled
def vram_bars(
    table: DataFrame,
    vram_gib: float,
    taken_gib: dict,
) -> Axes:
    """Draw the parts of the memory of a training step as stacked bars.

    Parameters
    ----------
    table : DataFrame
        MiB of each part (the keys of `PART_COLOURS`), one row for each attention
        implementation and number of tokens per row (its index).
    vram_gib : float
        Memory of the card in GiB, drawn as a line.
    taken_gib : dict of float
        GiB that an operating system takes, by its name; the rest is drawn as a
        line.

    Returns
    -------
    Axes
        The axes.
    """
    parts = table[[*PART_COLOURS]] / 1024
    axes = parts.plot.bar(
        figsize=(8.0, 3.8),
        stacked=True,
        width=0.7,
        color=PART_COLOURS,
        xlabel="tokens per row, attention",
        ylabel="GiB",
        legend=False,
    )
    totals = parts.sum(axis=1).map("{:.2f}".format)
    axes.bar_label(axes.containers[-1], totals, fontsize=8, padding=1.5, bbox=WHITE)
    axes.margins(y=0.1)
    limits = {"on the card": vram_gib}
    for system, taken in taken_gib.items():
        limits[f"left by {system}"] = vram_gib - taken
    for (words, gib), style in zip(limits.items(), ["-", "--", ":"]):
        label = f"{gib:.2f} GiB {words}"
        axes.axhline(gib, color=RED, linestyle=style, label=label)
    names = [f"{tokens}\n{attention}" for attention, tokens in table.index]
    axes.set_xticklabels(names, rotation=0)
    axes.figure.legend(loc=OUTSIDE, reverse=True)
    return axes


@_styled
def vram_timeline(table: DataFrame) -> Axes:
    """Draw the memory over one training step, stacked by part.

    Parameters
    ----------
    table : DataFrame
        MiB of each part after every allocation and release, and in ``phase`` the name
        of the part of the step, such as "forward".

    Returns
    -------
    Axes
        The axes.
    """
    parts = table[[name for name in PART_COLOURS if name in table]] / 1024
    axes = parts.plot.area(
        figsize=(8.0, 3.8),
        color=PART_COLOURS,
        linewidth=0,
        xlabel="allocations and releases, in order",
        ylabel="GiB",
        legend=False,
    )
    axes.margins(x=0)
    phases = table["phase"]
    numbers = (phases != phases.shift()).cumsum()
    for _, phase in phases.groupby(numbers):
        start = phase.index[0]
        middle = start + len(phase) / 2
        if len(phase) > 0.04 * len(table):
            axes.axvline(start, color=GREY, linewidth=0.8)
            above = axes.get_xaxis_transform()
            axes.text(middle, 1.02, phase.iloc[0], ha="center", transform=above)
    axes.figure.legend(loc=OUTSIDE, reverse=True)
    return axes
