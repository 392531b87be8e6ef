"""Every figure of the notebooks. Each function takes results, draws, and returns the figure's axes.

The names of the classes come with the results. Colours are Okabe and Ito's, which colour-blind readers can
tell apart; where there are more classes than colours, the shape of a point or a hatching tells the rest.
"""

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.colors import ListedColormap

from .recipe import LABELS

BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
SKY, RED, YELLOW, GREY, PALE = "#56B4E9", "#D55E00", "#F0E442", "#999999", "#D9D9D9"
DARK_GREY, DARK_PURPLE = "#555555", "#8C4A72"  # for small text, which the paler ones leave hard to read
COLOURS = [BLUE, ORANGE, GREEN, PURPLE, SKY, RED, YELLOW]
MARKERS, HATCHES = "os^Dv*PX", ("", "////", "....")
STACKED = {"stacked": True, "width": 0.7, "rot": 0, "edgecolor": "white", "linewidth": 0, "legend": False}
WHITE = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}  # behind a number that a line may run through
CENTRE = {"ha": "center", "va": "center"}
# One colour for each part of the memory, the same in every figure
PART_COLOURS = {"weights": BLUE, "gradients": SKY, "optimizer state": GREEN, "activations": ORANGE}
PART_COLOURS |= {"temporaries": YELLOW, "workspaces": PURPLE, "cached": PALE, "CUDA context": GREY}


def _figure(width=7.0, height=3.2, rows=1, columns=1, grid=(), **look):
    """The panels of a new figure of so many inches, in reading order; `look` is of each panel."""
    figure = plt.figure(figsize=(width, height), layout="constrained")
    with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        return figure.subplots(rows, columns, squeeze=False, subplot_kw=look, **dict(grid)).ravel()


def _finished(axes, legend="best", **look):
    """The axes with what `look` says and, where it shows several things, a legend in that place of it."""
    axes.set(**look)
    figure, (handles, names) = axes.figure, axes.get_legend_handles_labels()
    if legend == "outside right center":  # in the order of a stack
        figure.legend(handles, names, loc=legend, frameon=False, reverse=True)
    elif legend.startswith("outside") and len(names) > 1:  # as many in a line as there is room for
        columns = max(1, int(figure.get_figwidth() / (0.7 + 0.09 * max(map(len, names)))))
        figure.set_figheight(figure.get_figheight() + 0.2 * ((len(names) - 1) // columns))
        figure.legend(handles, names, loc=legend, frameon=False, ncols=columns)
    elif len(names) > 1:
        axes.legend(loc=legend, frameon=False)
    plt.setp(figure.findobj(plt.Text), parse_math=False)  # a price in dollars is no formula
    return axes


def class_balance(news):
    """Rows of each class in each split, as grouped bars."""
    names = news["train"].features["label"].names
    counts = {split: np.bincount(rows["label"][:], minlength=len(names)) for split, rows in news.items()}
    return bars(pd.DataFrame(counts, index=names), "rows", "Rows of each class", "{:,.0f}")


def length_histogram(lengths, max_length=512):
    """How long the rows are in tokens, on a full-width axis that shows the room up to `max_length`."""
    [axes] = _figure(title="Length of a news item", xlabel="tokens, [CLS] and [SEP] included", ylabel="rows")
    axes.hist(lengths, bins=range(0, max_length + 8, 8), color=BLUE)
    marks = {"mean": np.mean(lengths), "99 % of rows up to": np.percentile(lengths, 99), "limit": max_length}
    for (name, value), colour in zip(marks.items(), (ORANGE, GREEN, RED)):
        axes.axvline(value, color=colour, linestyle="--", label=f"{name} {value:.0f}")
    return _finished(axes, "center", xlim=(0, max_length + 8))


def padding_pictures(masks: dict):
    """Attention masks of one batch under several schemes, on one scale: blue is text, grey is padding."""
    panels = _figure(9.0, 0.7 + 1.1 * len(masks), rows=len(masks), grid={"sharex": True}, ylabel="row")
    colours = ListedColormap([PALE, BLUE])
    for axes, (name, mask) in zip(panels, masks.items()):
        axes.imshow(mask, colours, aspect="auto", interpolation="nearest", vmin=0, vmax=1)
        axes.set_title(f"{name}: {mask.sum() / mask.size:.0%} text", loc="left")
        axes.set_yticks(range(0, len(mask), 2))
    axes.set(xlabel="position", xlim=(-0.5, max(mask.shape[1] for mask in masks.values()) - 0.5))
    return panels


def bars(values, unit: str, title="", fmt="{:,.2f}", reference: float | None = None):
    """Horizontal bars with their numbers, and a line at `reference`.

    `values` is a Series, or a DataFrame: then a group for each of its rows, and in it a bar for each column.
    """
    table = pd.DataFrame(values)
    [axes] = _figure(7.5, 1.0 + (0.2 + 0.16 * len(table.columns)) * len(table), xmargin=0.1, title=title)
    table.plot.barh(ax=axes, width=0.8, color=COLOURS, legend=False)
    for group in axes.containers:
        axes.bar_label(group, fmt=fmt, padding=3, bbox=WHITE)
    if reference is not None:
        axes.axvline(reference, color=GREY, linestyle="--")
    return _finished(axes, "outside lower center", xlabel=unit, ylabel="", ylim=(len(table) - 0.5, -0.5))


def chain(stations: dict[str, str]):
    """Boxes with arrows between them: what something is called over each, what it holds inside."""
    [axes] = _figure(10.0, 1.5, xlim=(-0.5, len(stations) - 0.5), ylim=(-0.6, 1))
    axes.set_axis_off()
    box = {"boxstyle": "round,pad=0.5", "facecolor": "white", "edgecolor": BLUE, "linewidth": 1.5}
    arrow = {"arrowstyle": "-|>", "color": ORANGE}
    for place, (name, content) in enumerate(stations.items()):
        axes.text(place, 0.75, name, ha="center", fontweight="bold")
        axes.text(place, 0, content, fontsize=9, linespacing=1.3, bbox=box, **CENTRE)
        if place:
            axes.annotate("", (place - 0.43, 0), (place - 0.57, 0), arrowprops=arrow)
    return _finished(axes)


def token_strip(pieces: list[str], ids: list[int]):
    """The tokens of one text in their order, each with its id; grey are those that the tokenizer adds."""
    [axes] = _figure(min(10.0, 0.6 + 1.05 * len(ids)), 1.1, xlim=(-0.5, len(ids) - 0.5), ylim=(-1, 1))
    axes.set_axis_off()
    for place, (piece, number) in enumerate(zip(pieces, ids)):
        colour = GREY if piece.startswith("[") else SKY if piece.startswith("##") else BLUE
        axes.bar(place, 0.9, 0.92, bottom=-0.1, color=colour)
        axes.text(place, 0.35, piece, color="white" if colour == BLUE else "black", fontsize=9, **CENTRE)
        axes.text(place, -0.55, f"{number}", fontsize=9, **CENTRE)
    return _finished(axes)


def reliability(groups: pd.DataFrame, error: float):
    """Accuracy against confidence of equally filled groups (`calibration`), with intervals.

    On the diagonal 80 % means 80 %. `error` is the mean distance from it (`calibration_error`), from 0 to 1.
    """
    limits = (min(0.2, groups[["confidence", "low"]].min(axis=None) - 0.02), 1.02)
    [axes] = _figure(4.6, 4.2, xlabel="confidence", ylabel="accuracy", xlim=limits, ylim=limits)
    axes.axline((0, 0), slope=1, color=GREY, linestyle="--", label="says what it knows")
    said, right = groups["confidence"], groups["accuracy"]
    spread = (right - groups["low"], groups["high"] - right)
    axes.errorbar(said, right, spread, fmt="o", color=BLUE, capsize=3, label="groups, 95 % interval")
    axes.text(0.95, 0.43, "too sure", ha="right", color=DARK_GREY, transform=axes.transAxes)
    axes.text(0.03, 0.94, "too modest", ha="left", color=DARK_GREY, transform=axes.transAxes)
    return _finished(axes, "lower right", title=f"Off by {100 * error:.0f} points on average")


def training_curves(run):
    """Left, the loss of every step with its running mean; right, accuracy and loss of each epoch."""
    left, right = _figure(9.0, 3.2, columns=2)
    loss, history, classes = run.steps["loss"], run.history, run.model.config.num_labels
    left.plot(loss, color=SKY, linewidth=0.8, label="each step")
    left.plot(loss.rolling(20, min_periods=1).mean(), color=BLUE, label="mean of 20 steps")
    left.axhline(np.log(classes), color=GREY, linestyle="--", label=f"guessing, ln {classes}")
    _finished(left, xlabel="step", ylabel="loss in nats", ylim=(0, None), title="Training loss")
    looks = {"validation_accuracy": (GREEN, "o"), "train_loss": (BLUE, "s"), "validation_loss": (ORANGE, "^")}
    for name, (colour, marker) in looks.items():
        right.plot(history[name], color=colour, marker=marker, label=name.replace("_", " "))
    if run.best_epoch:  # none yet where the run was stopped in its first epoch
        right.axvline(run.best_epoch, color=GREY, linestyle=":", label="epoch kept")
    right.set(title="By epoch", ylabel="accuracy; loss in nats", ylim=(0, None))
    return left, _finished(right, xlabel="epoch", xticks=history.index)


def confusion_matrix(report):
    """Counts, true class down and predicted class across, shaded by the share of the true class."""
    counts = report.confusion
    inches = 0.6 if len(counts) <= 8 else 0.45  # of a cell
    [axes] = _figure(*(np.array([2.4, 1.4]) + inches * len(counts)), xlabel="predicted", ylabel="true")
    shares = counts.div(counts.sum(axis=1).clip(lower=1), axis="index")
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (i, j), share in np.ndenumerate(shares):
        colour = "white" if share > 0.5 else "black"
        axes.text(j, i, f"{counts.iat[i, j]:,}", fontsize=9, color=colour, **CENTRE)
    axes.set_xticks(range(len(counts)), counts.columns)
    axes.set_yticks(range(len(counts)), counts.index)
    axes.spines[:].set_visible(False)
    axes.tick_params("x", rotation=0 if max(map(len, counts.columns)) < 14 * inches + 1 else 90)
    return _finished(axes, title=f"{report.accuracy:.1%} of {report.rows:,} rows right")


def clouds(panels: dict[str, np.ndarray], labels, names=LABELS):
    """Points in the plane, a panel for each entry of `panels` (shape [rows, 2]), marked by class.

    `labels` has the class of each row, 0 to n-1, and `names` what the classes are called.
    """
    drawn = _figure(9.0, 4.0, columns=len(panels), xlabel="first component", ylabel="second component")
    for axes, (title, points) in zip(drawn, panels.items()):
        axes.set_title(title)
        for label, name in enumerate(names):
            look = {"color": COLOURS[label % len(COLOURS)], "marker": MARKERS[label % len(MARKERS)]}
            axes.scatter(*points[np.equal(labels, label)].T, s=16, alpha=0.7, label=name, **look)
    _finished(axes, "outside lower center")
    return drawn


def probabilities(table: pd.DataFrame):
    """The class probabilities of a few texts (the result of `classify`) as stacked bars."""
    [axes] = _figure(8.0, 0.9 + 0.42 * len(table))
    table.iloc[:, 2:].plot.barh(ax=axes, color=COLOURS, **STACKED)  # after text and label, the classes
    for i, part in enumerate(axes.containers):
        plt.setp(part, hatch=HATCHES[i // len(COLOURS) % len(HATCHES)])
    axes.set_yticklabels([text if len(text) < 48 else text[:45] + "..." for text in table["text"]])
    axes.invert_yaxis()
    return _finished(axes, "outside upper center", xlabel="probability", ylabel="", xlim=(0, 1))


def vram_bars(table: pd.DataFrame, vram_gib: float, taken_gib: dict[str, float] | None = None, axes=None):
    """Stacked bars of `vram.budget.budget_table`'s rows in GiB, with the card's memory drawn as a line.

    `taken_gib` draws a line for each system, below the card's by what that system takes.
    """
    axes = _figure(8.0, 3.8)[0] if axes is None else axes
    parts = table[list(PART_COLOURS)] / 1024
    parts.plot.bar(ax=axes, color=PART_COLOURS, xlabel="tokens per row, attention", ylabel="GiB", **STACKED)
    lines = [(vram_gib, "GiB on the card", RED, "--", 4)]
    for system, taken in (taken_gib or {}).items():
        lines.append((vram_gib - taken, f"left by {system}", DARK_PURPLE, ":", -12))
    for height, words, colour, style, points in lines:
        axes.axhline(height, color=colour, linestyle=style, linewidth=1.2)
        look = {"textcoords": "offset points", "color": colour, "fontsize": 9}
        axes.annotate(f"{height:.2f} {words}", (-0.4, height), (0, points), **look)
    totals = parts.sum(axis=1)
    axes.bar_label(axes.containers[-1], totals.map("{:.2f}".format), fontsize=8, padding=1.5, bbox=WHITE)
    axes.set_xticklabels([f"{length}\n{attention}" for attention, length in table.index])
    return _finished(axes, "outside right center", ylim=(0, max(vram_gib, *totals) * 1.12))


def vram_timeline(table: pd.DataFrame):
    """Memory over one step, stacked by category (`vram.budget.timeline`), with its phases named above."""
    [axes] = _figure(8.0, 3.8, xlabel="allocations and releases, in order", ylabel="GiB", xmargin=0)
    parts = table[[part for part in PART_COLOURS if part in table]] / 1024
    axes.stackplot(table.index, parts.T, colors=parts.columns.map(PART_COLOURS), labels=parts.columns)
    top, phases = parts.sum(axis=1).max(), table["phase"]
    for _, phase in phases.groupby((phases != phases.shift()).cumsum()):
        if len(phase) > 0.04 * len(table):
            axes.axvline(phase.index[0], color=GREY, linewidth=0.8)
            axes.text(phase.index[0] + len(phase) / 2, top * 1.04, phase.iloc[0], ha="center")
    return _finished(axes, "outside right center", ylim=(0, top * 1.15))


def gpu_picture(card, table: pd.DataFrame, note: str, taken_gib: dict[str, float] | None, title: str):
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
