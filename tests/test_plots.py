"""The bars are drawn and labelled, and no two texts in a figure overlap."""

import itertools
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgba

from agnews_helpers import LABELS, plots

# DistilBERT, 8 rows of 64 and 512 tokens, in MiB
TABLE = pd.DataFrame(
    [
        [255.4, 255.4, 510.8, 0.0, 1.5, 16.2, 176.6, 512.0],
        [255.4, 11.3, 510.8, 1219.5, 72.1, 16.2, 176.7, 512.0],
        [255.4, 255.4, 510.8, 0.0, 1.5, 16.2, 178.6, 512.0],
        [255.4, 11.3, 510.8, 2466.4, 72.1, 16.2, 179.8, 512.0],
    ],
    index=pd.MultiIndex.from_product(
        [["sdpa", "eager"], [64, 512]], names=["attention", "length"]
    ),
    columns=[*plots.PART_COLOURS],
)
TABLE["total"] = TABLE.sum(axis="columns")


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def check(figure):
    """Every axis with numbers has a label; no text is cut off or overlaps another."""
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    for axes in figure.axes:
        texts = [*axes.texts, axes.title]
        for axis in (axes.xaxis, axes.yaxis) if axes.axison else ():
            low, high = sorted(axis.get_view_interval())
            ticks = [
                tick.label1
                for tick in axis.get_major_ticks()
                if low <= tick.get_loc() <= high and tick.label1.get_visible()
            ]
            assert axis.label.get_text() or not any(
                re.match(r"[\d.,]", tick.get_text()) for tick in ticks
            )
            texts += [axis.label, *ticks]
        boxes = [
            (t.get_text(), t.get_window_extent(renderer))
            for t in texts
            if t.get_text() and t.get_visible()
        ]
        for legend in filter(None, (axes.get_legend(), *figure.legends)):
            boxes.append(("legend", legend.get_window_extent(renderer)))
        for (one, a), (two, b) in itertools.combinations(
            [(t, b.shrunk(0.9, 0.8)) for t, b in boxes], 2
        ):
            assert not a.overlaps(b), f"{one!r} over {two!r}"
        for name, box in boxes:
            room = figure.bbox.padded(1)
            assert room.contains(box.x0, box.y0) and room.contains(box.x1, box.y1), (
                f"{name!r} leaves the figure"
            )


ANSWERS = pd.DataFrame(
    [
        [
            "A headline that is far too long to be written beside its bar in full",
            "World",
            0.7,
            0.1,
            0.1,
            0.1,
        ],
        ["Short", "Sports", 0.1, 0.7, 0.1, 0.1],
    ],
    columns=["text", "label", *LABELS],
)


def in_parts(limits):
    """The bars of `TABLE`, stacked, in GiB."""
    parts = TABLE[[*plots.PART_COLOURS]] / 1024
    return plots.bars(
        parts, "GiB", "{:.2f}", limits, stacked=True, colours=plots.PART_COLOURS
    )


def shares(answers):
    """Stacked bars of the probabilities of each text."""
    table = answers.set_index(answers["text"].str[:48]).iloc[:, 2:]
    return plots.bars(table, "probability", fmt="", stacked=True)


DRAWINGS = {
    "bars": lambda: plots.bars(
        pd.Series({"padded to 512": 9.7, "random": 1.5, "grouped": 1.04}),
        "tokens for each real one",
        limits={"no waste": 1},
    ),
    "bars, in groups": lambda: plots.bars(
        pd.DataFrame(
            {"BERT-base": [23.8, 85.0], "DistilBERT": [23.8, 42.5]},
            index=["embeddings", "encoder"],
        ),
        "millions",
    ),
    "bars, stacked": lambda: shares(ANSWERS),
    "bars, stacked, with limits": lambda: in_parts({"4 GiB": 4.0, "3 GiB": 3.0}),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_figure_is_readable(name):
    DRAWINGS[name]()
    check(plt.gcf())


def of_classes(names):
    """A short and a long text, and an equal share of each of these classes."""
    answers = pd.DataFrame(np.full((2, len(names)), 1 / len(names)), columns=names)
    answers.insert(0, "label", names[0])
    long = "A text that is far too long to be written beside its bar in full"
    answers.insert(0, "text", ["Short", long])
    return answers


def written(figure):
    """All words of a figure."""
    texts = [text.get_text() for text in figure.findobj(plt.Text)]
    return {text for text in texts if text}


@pytest.mark.parametrize("count", [2, 7, 20])
def test_a_figure_by_class_has_room_for_any_classes(count):
    names = [f"letters on subject {number}" for number in range(count)]
    shares(of_classes(names))
    check(plt.gcf())
    assert set(names) <= written(plt.gcf()) and "World" not in written(plt.gcf())


@pytest.mark.parametrize("text", ["$x_{$", "From $5 to $10_000", "Cash^2 $1, $2_3"])
def test_a_price_is_no_formula(text):
    """As formulas, the first cannot be drawn and the others lose their dollar signs."""
    shares(ANSWERS.assign(text=[text, "Short"]))
    plots.bars(pd.Series({text: 1.0, "Short": 2.0}), "rows")
    for number in plt.get_fignums():
        figure = plt.figure(number)
        figure.canvas.draw()
        drawn = [
            words for words in figure.findobj(plt.Text) if text in words.get_text()
        ]
        assert drawn and not any(words.get_parse_math() for words in drawn)


def test_no_two_of_twenty_classes_look_the_same():
    answers = of_classes([f"class {number}" for number in range(20)])
    bars = [container.patches[0] for container in shares(answers).containers]
    assert len({(bar.get_facecolor(), bar.get_hatch()) for bar in bars}) == 20


def test_a_line_is_drawn_for_each_limit_and_named():
    axes = in_parts({"the card": 4.0, "left by linux": 3.75, "left by windows": 3.0})
    assert [line.get_xdata()[0] for line in axes.lines] == [4.0, 3.75, 3.0]
    assert len({line.get_linestyle() for line in axes.lines}) == 3
    assert {"the card, 4", "left by linux, 3.75"} <= written(axes.figure)


@pytest.mark.parametrize("name", ["tokens", None])
def test_the_axis_of_the_bars_is_called_like_the_index(name):
    values = pd.Series([1.0, 2.0], pd.Index([64, 512], name=name))
    assert plots.bars(values, "rows").get_ylabel() == (name or "")


def test_matplotlibs_settings_stay_as_they_are():
    before = dict(plt.rcParams)
    plots.bars(pd.Series({"a": 1.0}), "rows")
    assert dict(plt.rcParams) == before


def test_every_figure_of_the_package_is_tested_here():
    public = {
        name
        for name, value in vars(plots).items()
        if callable(value)
        and getattr(value, "__module__", "") == plots.__name__
        and name[0] != "_"
    }
    assert public == {name.partition(",")[0] for name in DRAWINGS}


def test_stacked_bars_carry_their_sum():
    axes = in_parts({})
    totals = (TABLE["total"] / 1024).tolist()
    widths = [[bar.get_width() for bar in group] for group in axes.containers]
    assert np.sum(widths, axis=0) == pytest.approx(totals)
    assert {f"{total:.2f}" for total in totals} <= written(axes.figure)
    colours = {group.get_label(): group[0].get_facecolor() for group in axes.containers}
    assert colours["weights"] == to_rgba(plots.PART_COLOURS["weights"])


def test_grouped_bars_have_their_numbers_and_the_first_row_on_top():
    table = pd.DataFrame(
        {"train": [90.0, 80.0], "test": [10.0, 20.0]}, index=["ham", "spam"]
    )
    axes = plots.bars(table, "rows", "{:.0f}")
    for container, name in zip(axes.containers, table.columns):
        assert (
            container.get_label() == name
            and list(container.datavalues) == table[name].tolist()
        )
    assert {"90", "80", "10", "20"} <= written(axes.figure) and axes.yaxis_inverted()
