"""Every figure of the notebooks. Each function takes results, draws, and returns its axes or figure.

The names of the classes come with the results. Colours are Okabe and Ito's, which colour-blind readers can
tell apart; where there are more classes than colours, a hatching tells the rest.
"""

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.colors import ListedColormap

BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
SKY, RED, YELLOW, GREY, PALE = "#56B4E9", "#D55E00", "#F0E442", "#999999", "#D9D9D9"
DARK_GREY, DARK_PURPLE = (
    "#555555",
    "#8C4A72",
)  # for small text, which the paler ones leave hard to read
COLOURS, HATCHES = [BLUE, ORANGE, GREEN, PURPLE, SKY, RED, YELLOW], ("", "////", "....")
STACKED = {
    "stacked": True,
    "width": 0.7,
    "rot": 0,
    "edgecolor": "white",
    "linewidth": 0,
    "legend": False,
}
WHITE = {
    "facecolor": "white",
    "edgecolor": "none",
    "pad": 0.8,
}  # behind a number that a line may run through
CENTRE = {"ha": "center", "va": "center"}
# One colour for each part of the memory, the same in every figure
PART_COLOURS = {
    "weights": BLUE,
    "gradients": SKY,
    "optimizer state": GREEN,
    "activations": ORANGE,
}
PART_COLOURS |= {
    "temporaries": YELLOW,
    "workspaces": PURPLE,
    "cached": PALE,
    "CUDA context": GREY,
}


def _figure(width=7.0, height=3.2, rows=1, columns=1, grid=(), **look):
    """The panels of a new figure of so many inches, in reading order; `look` is of each panel."""
    figure = plt.figure(figsize=(width, height), layout="constrained")
    with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        return figure.subplots(
            rows, columns, squeeze=False, subplot_kw=look, **dict(grid)
        ).ravel()


def _finished(axes, legend="best", **look):
    """The axes with what `look` says and, where it shows several things, a legend in that place of it."""
    axes.set(**look)
    figure, (handles, names) = axes.figure, axes.get_legend_handles_labels()
    if legend == "outside right center":  # in the order of a stack
        figure.legend(handles, names, loc=legend, frameon=False, reverse=True)
    elif (
        legend.startswith("outside") and len(names) > 1
    ):  # as many in a line as there is room for
        columns = max(
            1, int(figure.get_figwidth() / (0.7 + 0.09 * max(map(len, names))))
        )
        figure.set_figheight(
            figure.get_figheight() + 0.2 * ((len(names) - 1) // columns)
        )
        figure.legend(handles, names, loc=legend, frameon=False, ncols=columns)
    elif len(names) > 1:
        axes.legend(loc=legend, frameon=False)
    plt.setp(
        figure.findobj(plt.Text), parse_math=False
    )  # a price in dollars is no formula
    return axes


def masks(panels: dict[str, np.ndarray], unit="row"):
    """Arrays of 0 and 1 on one scale, such as attention masks: blue is text, grey is padding, or nothing."""
    drawn = _figure(
        9.0,
        0.7 + 1.1 * len(panels),
        rows=len(panels),
        grid={"sharex": True},
        ylabel=unit,
    )
    for axes, (name, mask) in zip(drawn, panels.items()):
        how = {"aspect": "auto", "interpolation": "nearest", "vmin": 0, "vmax": 1}
        axes.imshow(mask, ListedColormap([PALE, BLUE]), **how)
        axes.set_title(name, loc="left")
        axes.set_yticks(range(0, len(mask), 2))
    axes.set(
        xlabel="position in tokens",
        xlim=(-0.5, max(mask.shape[1] for mask in panels.values()) - 0.5),
    )
    return drawn


def bars(values, unit: str, title="", fmt="{:z,.2f}", reference: float | None = None):
    """Horizontal bars with their numbers, and a line at `reference`.

    `values` is a Series, or a DataFrame: then a group for each of its rows, and in it a bar for each column.
    """
    table = pd.DataFrame(values)
    [axes] = _figure(
        7.5,
        1.0 + (0.2 + 0.16 * len(table.columns)) * len(table),
        xmargin=0.1,
        title=title,
    )
    table.plot.barh(ax=axes, width=0.8, color=COLOURS, legend=False)
    for group in axes.containers:
        axes.bar_label(group, fmt=fmt, padding=3, bbox=WHITE)
    if reference is not None:
        axes.axvline(reference, color=GREY, linestyle="--")
    return _finished(
        axes,
        "outside lower center",
        xlabel=unit,
        ylabel="",
        ylim=(len(table) - 0.5, -0.5),
    )


def diagram(boxes: dict[str, tuple], arrows):
    """Boxes with words inside and their names above, and arrows between them.

    `boxes` has (x, y, words) by name, where neighbours are 1 apart; `arrows` has (from, to, words on it).
    """
    across, up = ({place[axis] for place in boxes.values()} for axis in (0, 1))
    limits = {
        "xlim": (min(across) - 0.5, max(across) + 0.5),
        "ylim": (min(up) - 0.5, max(up) + 0.7),
    }
    [axes] = _figure(10.0, 1.5 * (max(up) - min(up) + 1), **limits)
    axes.set_axis_off()
    look, drawn = (
        {
            "boxstyle": "round,pad=0.5",
            "facecolor": "white",
            "edgecolor": BLUE,
            "linewidth": 1.5,
        },
        {},
    )
    for name, (x, y, words) in boxes.items():
        drawn[name] = axes.text(
            x, y, words, fontsize=9, bbox=look, **CENTRE
        ).get_bbox_patch()
        above = {
            "xycoords": drawn[name],
            "xytext": (0, 5),
            "textcoords": "offset points",
            "in_layout": False,
        }
        axes.annotate(name, (0.5, 1), ha="center", fontweight="bold", **above)
    for start, end, words in arrows:
        (x, y, _), (to_x, to_y, _) = boxes[start], boxes[end]
        rise = (to_y - y) * (
            x == to_x
        )  # upright arrows leave room for the name above a box
        arrow = {
            "arrowstyle": "-|>",
            "color": ORANGE,
            "patchA": drawn[start],
            "patchB": drawn[end],
        }
        arrow |= {"shrinkA": 18 if rise > 0 else 3, "shrinkB": 18 if rise < 0 else 3}
        axes.annotate("", (to_x, to_y), (x, y), arrowprops=arrow, in_layout=False)
        axes.text(
            (x + to_x) / 2, (y + to_y) / 2, words, fontsize=9, bbox=WHITE, **CENTRE
        )
    return _finished(axes)


def training_curves(run):
    """The loss of every step with its running mean; the losses of each epoch; the accuracy of each epoch."""
    left, middle, right = panels = _figure(10.0, 3.2, columns=3)
    loss, history, classes = run.steps["loss"], run.history, run.model.config.num_labels
    left.plot(loss, color=SKY, linewidth=0.8, label="each step")
    left.plot(
        loss.rolling(20, min_periods=1).mean(), color=BLUE, label="mean of 20 steps"
    )
    left.axhline(
        np.log(classes), color=GREY, linestyle="--", label=f"guessing, ln {classes}"
    )
    _finished(
        left,
        xlabel="step",
        ylabel="loss in nats",
        ylim=(0, None),
        title="Training loss",
    )
    middle.plot(history["train_loss"], color=BLUE, marker="s", label="training")
    middle.plot(
        history["validation_loss"], color=ORANGE, marker="^", label="validation"
    )
    right.plot(
        history["validation_accuracy"], color=GREEN, marker="o", label="validation"
    )
    for axes in panels[1:]:
        if run.best_epoch:  # none yet where the run was stopped in its first epoch
            axes.axvline(run.best_epoch, color=GREY, linestyle=":", label="epoch kept")
        _finished(axes, xlabel="epoch", xticks=history.index)
    middle.set(ylabel="loss in nats", title="Loss by epoch", ylim=(0, None))
    right.set(ylabel="accuracy", title="Accuracy by epoch", ylim=(0, 1.05))
    return panels


def confusion_matrix(report):
    """Counts, true class down and predicted class across, shaded by the share of the true class."""
    counts = report.confusion
    inches = 0.6 if len(counts) <= 8 else 0.45  # of a cell
    [axes] = _figure(
        *(np.array([2.4, 1.4]) + inches * len(counts)),
        xlabel="predicted",
        ylabel="true",
    )
    shares = counts.div(counts.sum(axis=1).clip(lower=1), axis="index")
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (i, j), share in np.ndenumerate(shares):
        colour = "white" if share > 0.5 else "black"
        axes.text(j, i, f"{counts.iat[i, j]:,}", fontsize=9, color=colour, **CENTRE)
    axes.set_xticks(range(len(counts)), counts.columns)
    axes.set_yticks(range(len(counts)), counts.index)
    axes.spines[:].set_visible(False)
    axes.tick_params(
        "x", rotation=0 if max(map(len, counts.columns)) < 14 * inches + 1 else 90
    )
    return _finished(axes, title=f"{report.accuracy:.1%} of {report.rows:,} rows right")


def coverage(answers: pd.DataFrame, strangers):
    """How often the surest answers (`Report.answers`) are right, against how many of them one takes.

    `strangers` has the confidences of texts that belong to no class: how many of them one takes as well.
    """
    sure = answers.sort_values("confidence", ascending=False, kind="stable")
    shares = 100 * np.arange(1, len(sure) + 1) / len(sure)
    right = 100 * (sure["true"] == sure["predicted"]).expanding().mean()
    taken = [
        100 * np.mean(np.asarray(strangers) >= least) for least in sure["confidence"]
    ]
    [axes] = _figure(
        6.0, 3.4, xlabel="% of the test rows answered, the surest first", ylabel="%"
    )
    axes.plot(shares, right, color=BLUE, label="right of those answered")
    axes.plot(
        shares, taken, color=RED, linestyle="--", label="off-topic texts answered, too"
    )
    return _finished(axes, "outside lower center", ylim=(0, 103))


def gallery(losses: dict[str, pd.DataFrame]):
    """The losses of several recipes, each in a panel of its own with that of the first in grey behind it.

    `losses` has by the panel's title the loss of every step, a column for each seed; drawn is the mean of the
    seeds and of 20 steps.
    """
    smooth = {
        name: table.mean(axis=1).rolling(20, min_periods=1).mean()
        for name, table in losses.items()
    }
    rows, (first, *_) = -(-len(losses) // 4), smooth.values()
    panels = _figure(
        10.0, 2.0 * rows, rows=rows, columns=4, grid={"sharex": True, "sharey": True}
    )
    for axes, (name, curve) in zip(panels, smooth.items()):
        for line, colour in ((first, GREY), (curve, BLUE)):
            axes.plot(100 * line.index / line.index.max(), line, color=colour)
        axes.set_title(name, fontsize=9)
    plt.setp(panels[-4:], xlabel="% of the steps")
    plt.setp(panels[::4], ylabel="loss in nats")
    _finished(axes, ylim=(0, None))
    return panels


def probabilities(table: pd.DataFrame):
    """The class probabilities of a few texts (the result of `classify`) as stacked bars."""
    [axes] = _figure(8.0, 0.9 + 0.42 * len(table))
    table.iloc[:, 2:].plot.barh(
        ax=axes, color=COLOURS, **STACKED
    )  # after text and label, the classes
    for i, part in enumerate(axes.containers):
        plt.setp(part, hatch=HATCHES[i // len(COLOURS) % len(HATCHES)])
    axes.set_yticklabels(
        [text if len(text) < 48 else text[:45] + "..." for text in table["text"]]
    )
    axes.invert_yaxis()
    return _finished(
        axes, "outside upper center", xlabel="probability", ylabel="", xlim=(0, 1)
    )


def vram_bars(
    table: pd.DataFrame,
    vram_gib: float,
    taken_gib: dict[str, float] | None = None,
    axes=None,
):
    """Stacked bars of `vram.budget.budget_table`'s rows in GiB, with the card's memory drawn as a line.

    `taken_gib` draws a line for each system, below the card's by what that system takes.
    """
    axes = _figure(8.0, 3.8)[0] if axes is None else axes
    parts = table[list(PART_COLOURS)] / 1024
    parts.plot.bar(
        ax=axes,
        color=PART_COLOURS,
        xlabel="tokens per row, attention",
        ylabel="GiB",
        **STACKED,
    )
    lines = [(vram_gib, "GiB on the card", RED, "--", 4)]
    for system, taken in (taken_gib or {}).items():
        lines.append((vram_gib - taken, f"left by {system}", DARK_PURPLE, ":", -12))
    for height, words, colour, style, points in lines:
        axes.axhline(height, color=colour, linestyle=style, linewidth=1.2)
        look = {"textcoords": "offset points", "color": colour, "fontsize": 9}
        axes.annotate(f"{height:.2f} {words}", (-0.4, height), (0, points), **look)
    totals = parts.sum(axis=1)
    axes.bar_label(
        axes.containers[-1],
        totals.map("{:.2f}".format),
        fontsize=8,
        padding=1.5,
        bbox=WHITE,
    )
    axes.set_xticklabels(
        [f"{length}\n{attention}" for attention, length in table.index]
    )
    return _finished(
        axes, "outside right center", ylim=(0, max(vram_gib, *totals) * 1.12)
    )


def vram_timeline(table: pd.DataFrame):
    """Memory over one step, stacked by category (`vram.budget.timeline`), with its phases named above."""
    [axes] = _figure(
        8.0, 3.8, xlabel="allocations and releases, in order", ylabel="GiB", xmargin=0
    )
    parts = table[[part for part in PART_COLOURS if part in table]] / 1024
    axes.stackplot(
        table.index,
        parts.T,
        colors=parts.columns.map(PART_COLOURS),
        labels=parts.columns,
    )
    top, phases = parts.sum(axis=1).max(), table["phase"]
    for _, phase in phases.groupby((phases != phases.shift()).cumsum()):
        if len(phase) > 0.04 * len(table):
            axes.axvline(phase.index[0], color=GREY, linewidth=0.8)
            axes.text(
                phase.index[0] + len(phase) / 2, top * 1.04, phase.iloc[0], ha="center"
            )
    return _finished(axes, "outside right center", ylim=(0, top * 1.15))


def gpu_picture(
    card, table: pd.DataFrame, note: str, taken_gib: dict[str, float] | None, title: str
):
    """The picture of the README: left, the card's facts; right, the memory of a training step."""
    left, right = _figure(11.0, 4.6, columns=2, grid={"width_ratios": (1, 1.5)})
    left.set_axis_off()
    left.set_title(card.name, loc="left", fontweight="bold", fontsize=13)
    for i, (name, value) in enumerate(card.facts()):
        left.text(0.0, 0.9 - 0.11 * i, name, color=DARK_GREY)
        left.text(0.5, 0.9 - 0.11 * i, value)
    left.text(0.0, 0.02, note, color=DARK_GREY, fontsize=9, va="bottom")
    vram_bars(table, card.vram_gib, taken_gib, right)
    right.set_title(title, loc="left")
    return left.figure
