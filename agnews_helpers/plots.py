"""Every figure of the notebooks: each function draws one and returns its axes.

The colours are Okabe and Ito's, which people with colour-vision deficiency can tell
apart. If there are more classes than colours, hatching distinguishes the rest.
"""

import math

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from pandas import DataFrame, Series

from .evaluation import Report
from .runs import Run

BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
SKY, RED, YELLOW = "#56B4E9", "#D55E00", "#F0E442"
GREY, PALE = "#999999", "#D9D9D9"
DARK_PURPLE = "#8C4A72"  # for small text
COLOURS = [BLUE, ORANGE, GREEN, PURPLE, SKY, RED, YELLOW]
HATCHES = ["", "////", "...."]
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
BOX = {
    "boxstyle": "round,pad=0.5",
    "facecolor": "white",
    "edgecolor": BLUE,
    "linewidth": 1.5,
}
CENTRE = {"ha": "center", "va": "center"}


@_styled
def masks(panels: dict[str, np.ndarray], unit: str = "row") -> np.ndarray:
    """Draw arrays of 0 and 1, such as attention masks, on one scale.

    Parameters
    ----------
    panels : dict[str, np.ndarray]
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
        axes.imshow(
            mask,
            ListedColormap([PALE, BLUE]),
            aspect="auto",
            interpolation="nearest",
            vmin=0,
            vmax=1,
        )
        axes.set_title(title, loc="left")
        axes.set(ylabel=unit, yticks=range(0, len(mask), 2))
    longest = max(mask.shape[1] for mask in panels.values())
    axes.set(xlabel="position in tokens", xlim=(-0.5, longest - 0.5))
    return column.ravel()


@_styled
def bars(
    values: Series | DataFrame,
    unit: str,
    title: str = "",
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
    title : str
        Title of the figure.
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
    group_height = 0.2 + 0.16 * len(table.columns)
    height = 1.0 + group_height * len(table)
    axes = table.plot.barh(figsize=(7.5, height), width=0.8, legend=False)
    for group in axes.containers:
        axes.bar_label(group, fmt=fmt, padding=3, bbox=WHITE)
    if reference is not None:
        axes.axvline(reference, color=GREY, linestyle="--")
    axes.set(
        title=title,
        xlabel=unit,
        ylabel=table.index.name or "",
        xmargin=0.1,
    )
    axes.invert_yaxis()
    if len(table.columns) > 1:
        _legend_outside(axes, "outside lower center")
    return axes


def _legend_outside(axes: Axes, place: str) -> None:
    """Add a legend above or below the axes, and the height for all of its lines."""
    figure = axes.figure
    _, names = axes.get_legend_handles_labels()
    column_width = 0.7 + 0.09 * max(map(len, names))  # inches
    columns = max(1, int(figure.get_figwidth() / column_width))
    more_lines = (len(names) - 1) // columns
    figure.set_figheight(figure.get_figheight() + 0.2 * more_lines)
    figure.legend(loc=place, ncols=columns)


@_styled
def diagram(boxes: dict[str, tuple], arrows: list[tuple]) -> Axes:
    """Draw boxes with words inside, their names above, and arrows between them.

    Parameters
    ----------
    boxes : dict[str, tuple]
        x, y and words of each box, by its name; neighbours are 1 apart.
    arrows : list[tuple]
        Name of the box where an arrow starts, of the one where it ends, and the words
        on the arrow.

    Returns
    -------
    Axes
        The axes.
    """
    places = np.array([box[:2] for box in boxes.values()])
    left, bottom = places.min(axis=0) - 0.5
    right, top = places.max(axis=0) + 0.5
    _, axes = plt.subplots(figsize=(10.0, 1.5 * (top - bottom)))
    axes.set(xlim=(left, right), ylim=(bottom, top + 0.2))
    axes.set_axis_off()
    outlines = {}
    for name, (x, y, words) in boxes.items():
        text = axes.text(x, y, words, fontsize=9, bbox=BOX, **CENTRE)
        outlines[name] = text.get_bbox_patch()
        axes.annotate(
            name,
            (0.5, 1),
            (0, 5),
            xycoords=outlines[name],
            textcoords="offset points",
            ha="center",
            fontweight="bold",
            in_layout=False,
        )
    for start, end, words in arrows:
        x, y, _ = boxes[start]
        to_x, to_y, _ = boxes[end]
        rise = to_y - y if x == to_x else 0
        arrow = {
            "arrowstyle": "-|>",
            "color": ORANGE,
            "patchA": outlines[start],
            "patchB": outlines[end],
            # An upright arrow leaves room for the name above the lower box.
            "shrinkA": 18 if rise > 0 else 3,
            "shrinkB": 18 if rise < 0 else 3,
        }
        axes.annotate("", (to_x, to_y), (x, y), arrowprops=arrow)
        middle = (x + to_x) / 2, (y + to_y) / 2
        axes.text(*middle, words, fontsize=9, bbox=WHITE, **CENTRE)
    return axes


def _mean_of_20(loss: Series) -> Series:
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
    loss = run.steps["loss"]
    left.plot(loss, color=SKY, linewidth=0.8, label="each step")
    left.plot(_mean_of_20(loss), label="mean of 20 steps")
    classes = run.model.config.num_labels
    left.axhline(
        math.log(classes),
        color=GREY,
        linestyle="--",
        label=f"guessing, ln {classes}",
    )
    left.set(
        title="Training loss",
        xlabel="step",
        ylabel="loss in nats",
        ylim=(0, None),
    )
    epochs = run.history
    middle.plot(epochs["train_loss"], "s-", label="training")
    middle.plot(epochs["validation_loss"], "^-", label="validation")
    middle.set(title="Loss by epoch", ylabel="loss in nats", ylim=(0, None))
    right.plot(epochs["validation_accuracy"], "o-", color=GREEN, label="validation")
    right.set(title="Accuracy by epoch", ylabel="accuracy", ylim=(0, 1.05))
    for axes in (middle, right):
        axes.set(xlabel="epoch", xticks=epochs.index)
        if run.best_epoch:
            axes.axvline(run.best_epoch, color=GREY, linestyle=":", label="epoch kept")
    for axes in panels:
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
    places = range(len(counts))
    cell = 0.6 if len(counts) <= 8 else 0.45  # inches
    side = cell * len(counts)
    _, axes = plt.subplots(figsize=(2.4 + side, 1.4 + side))
    shares = counts.div(counts.sum(axis=1).clip(lower=1), axis="index")
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if shares.iat[row, column] > 0.5 else "black"
        axes.text(column, row, f"{count:,}", color=colour, **CENTRE)
    axes.set_xticks(places, counts.columns)
    axes.set_yticks(places, counts.index)
    if max(map(len, counts.columns)) > 14 * cell + 1:
        axes.tick_params("x", rotation=90)
    axes.spines[:].set_visible(False)
    axes.set(
        title=f"{report.accuracy:.1%} of {report.rows:,} rows right",
        xlabel="predicted",
        ylabel="true",
    )
    return axes


@_styled
def coverage(answers: DataFrame, strangers: list[float]) -> Axes:
    """Draw how often the most confident answers are right, by how many are accepted.

    Parameters
    ----------
    answers : DataFrame
        ``true``, ``predicted`` and ``confidence``, as in `Report.answers`.
    strangers : list[float]
        Confidences of texts that belong to no class; drawn is the share of them that is
        accepted as well.

    Returns
    -------
    Axes
        The axes.
    """
    ranked = answers.sort_values("confidence", ascending=False, kind="stable")
    right = (ranked["true"] == ranked["predicted"]).expanding().mean()
    confidences = np.asarray(strangers)
    taken = [np.mean(confidences >= least) for least in ranked["confidence"]]
    shares = {"right of those answered": right, "off-topic texts answered, too": taken}
    percent = 100 * DataFrame(shares)
    percent.index = 100 * np.arange(1, len(ranked) + 1) / len(ranked)
    axes = percent.plot(
        figsize=(6.0, 3.4),
        color=[BLUE, RED],
        style=["-", "--"],
        legend=False,
    )
    axes.set(
        xlabel="% of the test rows answered, most confident first",
        ylabel="%",
        ylim=(0, 103),
    )
    _legend_outside(axes, "outside lower center")
    return axes


@_styled
def gallery(losses: dict[str, DataFrame]) -> np.ndarray:
    """Draw the losses of several recipes, each beside that of the first one in grey.

    Parameters
    ----------
    losses : dict[str, DataFrame]
        The loss of every step, with one column per seed, by the title of its panel.
        Drawn is the mean over the seeds and over 20 steps.

    Returns
    -------
    np.ndarray
        The axes in reading order, four in a row.
    """
    rows = math.ceil(len(losses) / 4)
    _, grid = plt.subplots(
        rows,
        4,
        figsize=(10.0, 2.0 * rows),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    first, *_ = losses.values()
    for axes, (title, table) in zip(grid.flat, losses.items()):
        for seeds, colour in ((first, GREY), (table, BLUE)):
            loss = _mean_of_20(seeds.mean(axis=1))
            axes.plot(100 * loss.index / loss.index.max(), loss, color=colour)
        axes.set_title(title, fontsize=9)
    axes.set_ylim(bottom=0)
    plt.setp(grid[-1], xlabel="% of the steps")
    plt.setp(grid[:, 0], ylabel="loss in nats")
    return grid.ravel()


@_styled
def probabilities(table: DataFrame) -> Axes:
    """Draw the class probabilities of a few texts as stacked bars.

    Parameters
    ----------
    table : DataFrame
        The result of `classify`: text, label, and a column for each class.

    Returns
    -------
    Axes
        The axes.
    """
    axes = table.iloc[:, 2:].plot.barh(
        figsize=(8.0, 0.9 + 0.42 * len(table)),
        stacked=True,
        width=0.7,
        edgecolor="white",
        legend=False,
    )
    for number, part in enumerate(axes.containers):
        hatch = HATCHES[number // len(COLOURS) % len(HATCHES)]
        plt.setp(part, hatch=hatch)
    texts = [text if len(text) < 48 else text[:45] + "..." for text in table["text"]]
    axes.set_yticklabels(texts)
    axes.invert_yaxis()
    axes.set(xlabel="probability", xlim=(0, 1))
    _legend_outside(axes, "outside upper center")
    return axes


@_styled
def vram_bars(
    table: DataFrame,
    vram_gib: float,
    taken_gib: dict[str, float] | None = None,
    axes: Axes | None = None,
) -> Axes:
    """Draw the parts of the memory of a training step as stacked bars.

    Parameters
    ----------
    table : DataFrame
        MiB of each part (the keys of `PART_COLOURS`), one row for each attention
        implementation and number of tokens per row (its index).
    vram_gib : float
        Memory of the card in GiB, drawn as a line.
    taken_gib : dict[str, float] or None
        GiB that an operating system takes, by its name; the rest is drawn as a
        line.
    axes : Axes or None
        Where to draw; None for a new figure.

    Returns
    -------
    Axes
        The axes.
    """
    if axes is None:
        _, axes = plt.subplots(figsize=(8.0, 3.8))
    parts = table[list(PART_COLOURS)] / 1024
    parts.plot.bar(
        ax=axes,
        stacked=True,
        width=0.7,
        color=PART_COLOURS,
        legend=False,
    )
    lines = [(vram_gib, "GiB on the card", RED, "--", 4)]
    for system, taken in (taken_gib or {}).items():
        lines.append((vram_gib - taken, f"left by {system}", DARK_PURPLE, ":", -12))
    for gib, words, colour, style, points in lines:
        axes.axhline(gib, color=colour, linestyle=style, linewidth=1.2)
        axes.annotate(
            f"{gib:.2f} {words}",
            (-0.4, gib),
            (0, points),
            textcoords="offset points",
            color=colour,
            fontsize=9,
        )
    totals = parts.sum(axis=1)
    axes.bar_label(
        axes.containers[-1],
        totals.map("{:.2f}".format),
        fontsize=8,
        padding=1.5,
        bbox=WHITE,
    )
    names = [f"{tokens}\n{attention}" for attention, tokens in table.index]
    axes.set_xticklabels(names, rotation=0)
    axes.set(
        xlabel="tokens per row, attention",
        ylabel="GiB",
        ylim=(0, max(vram_gib, *totals) * 1.12),
    )
    axes.figure.legend(loc="outside right center", reverse=True)
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
        legend=False,
    )
    top = parts.sum(axis=1).max()
    phases = table["phase"]
    numbers = (phases != phases.shift()).cumsum()
    for _, phase in phases.groupby(numbers):
        start = phase.index[0]
        middle = start + len(phase) / 2
        if len(phase) > 0.04 * len(table):
            axes.axvline(start, color=GREY, linewidth=0.8)
            axes.text(middle, top * 1.04, phase.iloc[0], ha="center")
    axes.set(
        xlabel="allocations and releases, in order",
        ylabel="GiB",
        xmargin=0,
        ylim=(0, top * 1.15),
    )
    axes.figure.legend(loc="outside right center", reverse=True)
    return axes
