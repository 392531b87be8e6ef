"""The bars are drawn and labelled, and no two texts in a figure overlap."""

import itertools
import re

import pandas as pd
import pytest
from matplotlib import pyplot as plt

from agnews_helpers import plots


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


DRAWINGS = {
    "bars": lambda: plots.bars(
        pd.Series({"padded to 512": 9.7, "random": 1.5, "grouped": 1.04}),
        "tokens for each real one",
    ),
    "bars, in groups": lambda: plots.bars(
        pd.DataFrame(
            {"BERT-base": [23.8, 85.0], "DistilBERT": [23.8, 42.5]},
            index=["embeddings", "encoder"],
        ),
        "millions",
    ),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_figure_is_readable(name):
    DRAWINGS[name]()
    check(plt.gcf())


def written(figure):
    """All words of a figure."""
    texts = [text.get_text() for text in figure.findobj(plt.Text)]
    return {text for text in texts if text}


@pytest.mark.parametrize("text", ["$x_{$", "From $5 to $10_000", "Cash^2 $1, $2_3"])
def test_a_price_is_no_formula(text):
    """As a formula, the first cannot be drawn; the others lose their dollar signs."""
    plots.bars(pd.Series({text: 1.0, "Short": 2.0}), "rows")
    for number in plt.get_fignums():
        figure = plt.figure(number)
        figure.canvas.draw()
        drawn = [
            words for words in figure.findobj(plt.Text) if text in words.get_text()
        ]
        assert drawn and not any(words.get_parse_math() for words in drawn)


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
