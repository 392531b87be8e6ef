"""Every figure of the notebooks. Each function takes results, draws, and returns the figure's axes.

Colours are Okabe and Ito's, which colour-blind readers can tell apart.
"""
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt

from .recipe import LABELS

BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#999999")
# One colour for each part of the memory, the same in every figure
PART_COLOURS = {"weights": BLUE, "gradients": SKY, "optimizer state": GREEN, "activations": ORANGE, "temporaries": YELLOW,
                "workspaces": PURPLE, "cached": "#D9D9D9", "CUDA context": GREY}


def _axes(width=7.0, height=3.2, **options):
    _, axes = plt.subplots(figsize=(width, height), layout="constrained", **options)
    for one in np.atleast_1d(axes):
        one.spines[["top", "right"]].set_visible(False)
    return axes


def class_balance(news):
    """Rows of each class in each split, as grouped bars."""
    counts = {split: np.bincount(rows["label"][:], minlength=len(LABELS)) for split, rows in news.items()}
    return bars_side_by_side(pd.DataFrame(counts, index=LABELS), "Rows of each class", "rows", fmt="{:,.0f}")


def length_histogram(lengths, max_length=512):
    """How long the rows are in tokens, on a full-width axis that shows the room up to `max_length`."""
    axes = _axes()
    axes.hist(lengths, bins=range(0, max_length + 8, 8), color=BLUE)
    for value, name, colour in ((np.mean(lengths), "mean", ORANGE), (np.percentile(lengths, 99), "99 % of rows up to", GREEN),
                                (max_length, "limit", RED)):
        axes.axvline(value, color=colour, linestyle="--", label=f"{name} {value:.0f}")
    axes.set(xlabel="tokens, [CLS] and [SEP] included", ylabel="rows", xlim=(0, max_length + 8), title="Length of a news item")
    axes.legend(frameon=False, loc="center")
    return axes


def padding_pictures(masks: dict):
    """Attention masks of one batch under several schemes, side by side: dark is text, light is padding."""
    axes = _axes(9.0, 2.4, ncols=len(masks), sharey=True)
    for one, (name, mask) in zip(axes, masks.items()):
        one.imshow(mask, aspect="auto", cmap=plt.matplotlib.colors.ListedColormap(["#E6E6E6", BLUE]), interpolation="nearest", vmin=0, vmax=1)
        one.set(title=f"{name}: {mask.sum() / mask.size:.0%} text", xlabel="position", yticks=range(len(mask)))
    axes[0].set_ylabel("row of the batch")
    return axes


def bars(values: pd.Series, unit: str, title: str = "", fmt: str = "{:,.2f}", reference: float | None = None):
    """Horizontal bars, one for each entry of `values`, with its number; `reference` draws a line to compare with."""
    axes = _axes(7.5, 1.0 + 0.36 * len(values))
    drawn = axes.barh([str(name) for name in values.index], values.to_numpy(), color=BLUE)
    axes.bar_label(drawn, fmt=fmt, padding=3)
    if reference is not None:
        axes.axvline(reference, color=GREY, linestyle="--")
    axes.invert_yaxis()
    axes.set(xlabel=unit, title=title)
    axes.margins(x=0.1)
    return axes


def chain(stations: dict[str, str]):
    """Boxes with arrows between them: what something is called over each, what it holds inside."""
    axes = _axes(10.0, 1.5)
    axes.axis("off")
    axes.set(xlim=(-0.5, len(stations) - 0.5), ylim=(-0.6, 1))
    for place, (name, content) in enumerate(stations.items()):
        axes.text(place, 0.75, name, ha="center", fontweight="bold")
        axes.text(place, 0, content, ha="center", va="center", fontsize=9, linespacing=1.3,
                  bbox={"boxstyle": "round,pad=0.5", "facecolor": "white", "edgecolor": BLUE, "linewidth": 1.5})
        if place:
            axes.annotate("", (place - 0.43, 0), (place - 0.57, 0), arrowprops={"arrowstyle": "-|>", "color": ORANGE})
    return axes


def token_strip(pieces: list[str], ids: list[int]):
    """The tokens of one text in their order, each with its id; grey are those that the tokenizer adds itself."""
    axes = _axes(min(10.0, 0.6 + 1.05 * len(pieces)), 1.1)
    axes.axis("off")
    axes.set(xlim=(-0.5, len(pieces) - 0.5), ylim=(-1, 1))
    for place, (piece, number) in enumerate(zip(pieces, ids)):
        colour = GREY if piece.startswith("[") else SKY if piece.startswith("##") else BLUE
        axes.add_patch(plt.Rectangle((place - 0.46, -0.1), 0.92, 0.9, color=colour))
        axes.text(place, 0.35, piece, ha="center", va="center", color="black" if colour == SKY else "white", fontsize=9)
        axes.text(place, -0.55, f"{number}", ha="center", va="center", fontsize=9)
    return axes


def reliability(groups: pd.DataFrame, error: float):
    """Accuracy against confidence of equally filled groups (`calibration`), with intervals; on the diagonal 80 % means 80 %."""
    axes = _axes(4.6, 4.2)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", label="says what it knows")
    spread = [groups["accuracy"] - groups["low"], groups["high"] - groups["accuracy"]]
    axes.errorbar(groups["confidence"], groups["accuracy"], yerr=spread, color=BLUE, marker="o", linestyle="none", capsize=3, label="groups, 95 % interval")
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0.2, 1.02), ylim=(0.2, 1.02), title=f"Off by {100 * error:.0f} points on average")
    axes.text(0.98, 0.55, "too sure", ha="right", color="#555555")
    axes.text(0.42, 0.92, "too modest", ha="right", color="#555555")
    axes.legend(frameon=False, loc="lower right")
    return axes


def training_curves(run):
    """Left, the loss of every step with its running mean; right, accuracy and loss of each epoch."""
    left, right = _axes(9.0, 3.2, ncols=2)
    loss = run.steps["loss"]
    left.plot(loss.index, loss, color=SKY, linewidth=0.8, label="each step")
    left.plot(loss.index, loss.rolling(20, min_periods=1).mean(), color=BLUE, label="mean of 20 steps")
    left.axhline(np.log(4), color=GREY, linestyle="--", label="guessing, ln 4")
    left.set(xlabel="step", ylabel="loss in nats", ylim=(0, None), title="Training loss")
    left.legend(frameon=False)
    history = run.history
    right.plot(history.index, history["validation_accuracy"], color=GREEN, marker="o", label="validation accuracy")
    right.plot(history.index, history["train_loss"], color=BLUE, marker="s", label="train loss")
    right.plot(history.index, history["validation_loss"], color=ORANGE, marker="^", label="validation loss")
    if run.best_epoch:  # none yet where the run was stopped in its first epoch
        right.axvline(run.best_epoch, color=GREY, linestyle=":", label="epoch kept")
    right.set(xlabel="epoch", ylabel="accuracy; loss in nats", ylim=(0, None), xticks=history.index, title="By epoch")
    right.legend(frameon=False)
    return left, right


def continued_run(whole, stopped, continued):
    """Loss of each step: of a run that nothing interrupted, and over it those of one in two parts."""
    axes = _axes(7.5, 3.0)
    stop = len(stopped.steps)
    axes.plot(whole.steps.index, whole.steps["loss"], color=SKY, linewidth=6, alpha=0.6, label="without interruption")
    axes.plot(stopped.steps.index, stopped.steps["loss"], color=BLUE, marker="o", markersize=3, label="until the stop")
    axes.plot(continued.steps.index[stop:], continued.steps["loss"][stop:], color=ORANGE, marker="^", markersize=4, label="continued")
    axes.axvline(stop + 0.5, color=GREY, linestyle=":")
    axes.margins(y=0.15)
    axes.set(xlabel="step", ylabel="loss in nats", title=f"Stopped after step {stop}, and continued")
    axes.legend(frameon=False)
    return axes


def confusion_matrix(report):
    """Counts, true class down and predicted class across, shaded by the share of the true class."""
    axes = _axes(4.8, 3.8)
    counts = report.confusion.values
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.ndindex(counts.shape):
        axes.text(j, i, f"{counts[i, j]:,}", ha="center", va="center", color="white" if share[i, j] > 0.5 else "black")
    axes.set(xticks=range(4), xticklabels=LABELS, yticks=range(4), yticklabels=LABELS, xlabel="predicted", ylabel="true",
             title=f"{report.accuracy:.1%} of {report.rows:,} rows right")
    axes.spines[:].set_visible(False)
    return axes


def bars_side_by_side(table: pd.DataFrame, title: str, unit: str, fmt: str = "{:,.1f}"):
    """A small grouped bar chart: a group for each row of `table`, a bar for each column."""
    axes = _axes()
    width = 0.8 / len(table.columns)
    for i, (name, colour) in enumerate(zip(table.columns, (BLUE, ORANGE, SKY, PURPLE))):
        places = np.arange(len(table)) + (i - (len(table.columns) - 1) / 2) * width
        axes.bar_label(axes.bar(places, table[name], width * 0.95, color=colour, label=name), fmt=fmt, fontsize=8)
    axes.set(xticks=range(len(table)), xticklabels=table.index, ylabel=unit, title=title)
    axes.margins(y=0.12)
    axes.legend(frameon=False, ncols=len(table.columns), loc="upper center", bbox_to_anchor=(0.5, -0.1))
    return axes


def clouds(panels: dict[str, np.ndarray], labels):
    """Points in the plane, a panel for each entry of `panels` (shape [rows, 2]), in the colour and shape of their class."""
    drawn = _axes(9.0, 4.0, ncols=len(panels))
    for axes, (title, points) in zip(np.atleast_1d(drawn), panels.items()):
        for label, (name, colour, marker) in enumerate(zip(LABELS, (BLUE, ORANGE, GREEN, PURPLE), "os^D")):
            axes.scatter(*points[np.asarray(labels) == label].T, s=16, color=colour, marker=marker, alpha=0.7, label=name)
        axes.set(title=title, xlabel="first component", ylabel="second component")
    axes.figure.legend(*axes.get_legend_handles_labels(), frameon=False, ncols=len(LABELS), loc="outside lower center")
    return drawn


def probabilities(table: pd.DataFrame):
    """The class probabilities of a few texts (the result of `classify`) as stacked bars."""
    axes = _axes(8.0, 0.9 + 0.42 * len(table))
    left = np.zeros(len(table))
    names = [text if len(text) < 48 else text[:45] + "..." for text in table["text"]]
    places = range(len(table))
    for label, colour in zip(LABELS, (BLUE, ORANGE, GREEN, PURPLE)):
        axes.barh(places, table[label], left=left, color=colour, label=label)
        left += table[label].to_numpy()
    axes.set(yticks=places, yticklabels=names, xlabel="probability", xlim=(0, 1))
    axes.invert_yaxis()
    axes.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return axes


def vram_bars(table: pd.DataFrame, vram_gib: float, taken_gib: dict[str, float] | None = None, axes=None):
    """Stacked bars of `vram.budget.budget_table`'s rows in GiB, with the card's memory drawn as a line.

    `taken_gib` draws a line for each system, below the card's by what that system takes.
    """
    axes = _axes(8.0, 3.8) if axes is None else axes
    places, below = np.arange(len(table)), np.zeros(len(table))
    for part, colour in PART_COLOURS.items():
        axes.bar(places, table[part] / 1024, 0.7, bottom=below, color=colour, label=part)
        below += table[part].to_numpy() / 1024
    for place, top in zip(places, below):
        axes.annotate(f"{top:.2f}", (place, top), ha="center", va="bottom", fontsize=8)
    axes.axhline(vram_gib, color=RED, linestyle="--")
    axes.annotate(f"{vram_gib:.2f} GiB on the card", (-0.4, vram_gib), color=RED, va="bottom", ha="left", fontsize=9)
    for system, taken in (taken_gib or {}).items():
        axes.axhline(vram_gib - taken, color=PURPLE, linestyle=":")
        axes.annotate(f"{vram_gib - taken:.2f} left by {system}", (-0.4, vram_gib - taken), xytext=(0, -2), textcoords="offset points",
                      color="#8C4A72", va="top", ha="left", fontsize=9)
    axes.set(xticks=places, xticklabels=[f"{length}\n{attention}" for attention, length in table.index],
             xlabel="tokens a row, attention", ylabel="GiB", ylim=(0, max(vram_gib, below.max()) * 1.12))
    handles, names = axes.get_legend_handles_labels()
    axes.figure.legend(handles[::-1], names[::-1], frameon=False, loc="outside right center")
    return axes


def vram_timeline(table: pd.DataFrame):
    """Memory over one step, stacked by category (`vram.budget.timeline`), with its phases named above."""
    axes = _axes(8.0, 3.8)
    parts = [part for part in PART_COLOURS if part in table]
    axes.stackplot(table.index, (table[parts] / 1024).T, colors=[PART_COLOURS[part] for part in parts], labels=parts)
    top = table[parts].sum(axis=1).max() / 1024
    starts = table.index[table["phase"] != table["phase"].shift()].tolist()
    spans = [(a, b) for a, b in zip(starts, [*starts[1:], len(table)]) if b - a > 0.04 * len(table)]
    for first, last in spans:
        axes.axvline(first, color=GREY, linewidth=0.8)
        axes.text((first + last) / 2, top * 1.04, table["phase"].iloc[first], ha="center")
    axes.set(xlabel="allocations and releases, in order", ylabel="GiB", ylim=(0, top * 1.15), xlim=(0, len(table)))
    handles, names = axes.get_legend_handles_labels()
    axes.figure.legend(handles[::-1], names[::-1], frameon=False, loc="outside right center")
    return axes


def batch_map(maps: dict[str, pd.DataFrame], frontiers: dict[str, pd.DataFrame]):
    """Reserved memory by batch size and length, a panel for each attention, and the largest batch of each system.

    `maps` are of `vram.budget.batch_map`; `frontiers` have a row for each length and a column for each system.
    """
    panels = np.atleast_1d(_axes(10.0, 4.2, ncols=len(maps), sharey=True))
    for axes, (name, table) in zip(panels, maps.items()):
        gib = table.to_numpy() / 1024
        axes.imshow(gib, aspect="auto", cmap="Greys", norm=plt.matplotlib.colors.LogNorm(0.8, 16), origin="lower")
        for i, j in np.ndindex(gib.shape):
            axes.text(j, i, f"{gib[i, j]:.1f}", ha="center", va="center", fontsize=8, color="white" if gib[i, j] > 4.5 else "black")
        for (system, largest), colour in zip(frontiers[name].items(), (BLUE, RED)):
            heights = [sum(size <= most for size in table.index) - 0.5 for most in largest]
            edges = np.arange(len(heights) + 1) - 0.5
            axes.stairs(heights, edges, baseline=None, color=colour, linewidth=2.5, label=f"fits below: {system}")
        axes.set(xticks=range(len(table.columns)), xticklabels=table.columns, yticks=range(len(table)), yticklabels=table.index,
                 xlabel="tokens a row", title=f"{name}: GiB reserved")
        axes.spines[:].set_visible(False)
    panels[0].set_ylabel("batch size")
    handles, names = panels[0].get_legend_handles_labels()
    panels[0].figure.legend(handles, names, frameon=False, ncols=2, loc="outside lower center")
    return panels


def gpu_picture(card, table: pd.DataFrame, note: str, taken_gib: dict[str, float] | None = None):
    """The picture of the README: left, the card's facts; right, the memory of a step at batch size 8."""
    figure = plt.figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.5))
    left.axis("off")
    left.set_title(card.name, loc="left", fontweight="bold", fontsize=13)
    for i, (name, value) in enumerate(card.facts()):
        left.text(0.0, 0.9 - 0.11 * i, name, color="#555555", transform=left.transAxes)
        left.text(0.5, 0.9 - 0.11 * i, value, transform=left.transAxes)
    left.text(0.0, 0.02, note, color="#555555", fontsize=9, transform=left.transAxes, va="bottom")
    right.spines[["top", "right"]].set_visible(False)
    vram_bars(table, card.vram_gib, taken_gib, right)
    right.set_title("DistilBERT, batch size 8, fp32, Adam: memory of one training step", loc="left", fontsize=11)
    return figure
