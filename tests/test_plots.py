"""Every figure is drawn and labelled, and no two texts in it overlap."""

import itertools
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgba

from agnews_helpers import LABELS, plots, score

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


REPORT = score(
    np.eye(4)[[0, 1, 2, 3, 0, 2]] * 3.0, np.array([0, 1, 2, 3, 1, 3]), list("abcdef")
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
BOXES = {
    "text": (0, 0, "Stocks fall\nas oil climbs"),
    "tokens": (1, 0, "[CLS] stocks\nfall as oil ..."),
    "tensor": (2, 0, "101, 15768,\n2991, 2004, ..."),
}
CIRCLE = {
    "one": (0, 1, "1\n1"),
    "two": (1, 1, "2"),
    "three": (1, 0, "3"),
    "four": (0, 0, "4\n4"),
}
ROUND = [("one", "two"), ("two", "three"), ("three", "four"), ("four", "one")]


STATIONS = {
    f"station ({number})": (number, 0, "101 15768 2991\n2004 3514 ...")
    for number in range(7)
}


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
    "diagram": lambda: plots.diagram(BOXES, [("text", "tokens"), ("tokens", "tensor")]),
    "diagram, of seven boxes": lambda: plots.diagram(STATIONS, []),
    "diagram, in a circle": lambda: plots.diagram(CIRCLE, ROUND),
    "confusion_matrix": lambda: plots.confusion_matrix(REPORT),
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


BY_CLASS = {
    "confusion_matrix": lambda given: plots.confusion_matrix(given.report),
    "bars": lambda given: shares(given.answers),
}


def of_classes(names):
    """The arguments of the figures by class, for classes with these names."""
    labels = np.arange(30 * len(names)) % len(names)
    answers = pd.DataFrame(np.full((2, len(names)), 1 / len(names)), columns=names)
    answers.insert(0, "label", names[0])
    answers.insert(
        0,
        "text",
        ["Short", "A text that is far too long to be written beside its bar in full"],
    )
    return SimpleNamespace(
        answers=answers,
        report=score(np.eye(len(names))[labels], labels, [""] * len(labels), names),
    )


def written(figure):
    """All words of a figure."""
    texts = [text.get_text() for text in figure.findobj(plt.Text)]
    return {text for text in texts if text}


@pytest.mark.parametrize("count", [2, 7, 20])
@pytest.mark.parametrize("name", BY_CLASS)
def test_a_figure_by_class_has_room_for_any_classes(name, count):
    names = [f"letters on subject {number}" for number in range(count)]
    BY_CLASS[name](of_classes(names))
    check(plt.gcf())
    assert set(names) <= written(plt.gcf()) and "World" not in written(plt.gcf())


@pytest.mark.parametrize("text", ["$x_{$", "From $5 to $10_000", "Cash^2 $1, $2_3"])
def test_a_price_is_no_formula(text):
    """As formulas, the first cannot be drawn and the others lose their dollar signs."""
    shares(ANSWERS.assign(text=[text, "Short"]))
    plots.bars(pd.Series({text: 1.0, "Short": 2.0}), "rows")
    plots.diagram({text: (0, 0, text), "tokens": (1, 0, "short")}, [(text, "tokens")])
    for number in plt.get_fignums():
        figure = plt.figure(number)
        figure.canvas.draw()
        drawn = [
            words for words in figure.findobj(plt.Text) if text in words.get_text()
        ]
        assert drawn and not any(words.get_parse_math() for words in drawn)


def test_no_two_of_twenty_classes_look_the_same():
    given = of_classes([f"class {number}" for number in range(20)])
    bars = [container.patches[0] for container in shares(given.answers).containers]
    assert len({(bar.get_facecolor(), bar.get_hatch()) for bar in bars}) == 20


def test_an_arrow_is_drawn_from_box_to_box():
    axes = plots.diagram(CIRCLE, [("one", "two")])
    [arrow] = [
        text for text in axes.texts if getattr(text, "arrow_patch", None) is not None
    ]
    assert (arrow.xyann, arrow.xy) == ((0, 1), (1, 1))


def test_a_diagram_fills_its_figure():
    """The arrows are ignored when the axes get their place."""
    axes = plots.diagram(CIRCLE, ROUND)
    axes.figure.canvas.draw()
    assert axes.get_position().width > 0.95


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


def test_the_rows_of_the_confusion_matrix_are_the_true_classes():
    axes = plots.confusion_matrix(REPORT)
    counts = {
        (int(t.get_position()[1]), int(t.get_position()[0])): t.get_text()
        for t in axes.texts
    }
    assert (
        counts[1, 0] == "1" and counts[0, 1] == "0"
    )  # one Sports row was taken for World
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("True label", "Predicted label")


def test_the_confusion_matrix_is_shaded_by_the_share_of_the_true_class():
    true = np.array([0] * 90 + [1] * 10)
    predicted = np.where(np.arange(100) % 10, true, 1 - true)  # one in ten is wrong
    axes = plots.confusion_matrix(
        score(np.eye(2)[predicted], true, [""] * 100, ["many", "few"])
    )
    assert np.asarray(axes.images[0].get_array()) == pytest.approx(
        np.array([[0.9, 0.1], [0.1, 0.9]])
    )
    assert axes.images[0].get_clim() == (0, 1) and [
        t.get_text() for t in axes.texts
    ] == ["81", "9", "1", "9"]
    dark, light, also_light, also_dark = [t.get_color() for t in axes.texts]
    assert dark == also_dark != light == also_light
