"""Figures are drawn, labelled, and nothing in them is written over something else."""

import itertools
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features
from matplotlib import pyplot as plt
from transformers import DistilBertConfig

from agnews_helpers import (
    GTX_1650_TI,
    LABELS,
    Recipe,
    StepOptions,
    budget_table,
    load_data,
    plots,
    score,
    trace_steps,
)
from agnews_helpers.training import Run
from agnews_helpers.vram.budget import timeline

CONFIG = DistilBertConfig(num_labels=4)
TABLE = budget_table(CONFIG, lengths=(64, 512))


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def check(figure):
    """An axis with numbers says what they are, nothing leaves the figure, and no two texts overlap."""
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
            assert axis.label.get_text() or not any(re.match(r"[\d.,]", tick.get_text()) for tick in ticks)
            texts += [axis.label, *ticks]
        boxes = [
            (t.get_text(), t.get_window_extent(renderer)) for t in texts if t.get_text() and t.get_visible()
        ]
        for legend in filter(None, (axes.get_legend(), *figure.legends)):
            boxes.append(("legend", legend.get_window_extent(renderer)))
        for (one, a), (two, b) in itertools.combinations([(t, b.shrunk(0.9, 0.8)) for t, b in boxes], 2):
            assert not a.overlaps(b), f"{one!r} over {two!r}"
        for name, box in boxes:
            room = figure.bbox.padded(1)
            assert room.contains(box.x0, box.y0) and room.contains(box.x1, box.y1), (
                f"{name!r} leaves the figure"
            )


def run(classes=4):
    model = SimpleNamespace(config=SimpleNamespace(num_labels=classes))
    loss = pd.DataFrame({"loss": np.linspace(1.4, 0.3, 192)}, index=pd.RangeIndex(1, 193, name="step"))
    history = pd.DataFrame(
        {
            "train_loss": [1.3, 1.1, 0.6, 0.4],
            "validation_loss": [1.2, 0.8, 0.5, 0.3],
            "validation_accuracy": [0.8, 0.9, 1.0, 1.0],
        },
        index=pd.Index([1, 2, 3, 4], name="epoch"),
    )
    return Run(model, None, history, loss, 4, 60.0)


REPORT = score(np.eye(4)[[0, 1, 2, 3, 0, 2]] * 3.0, np.array([0, 1, 2, 3, 1, 3]), list("abcdef"))
GROUPS = pd.DataFrame(
    {
        "confidence": [0.4, 0.6, 0.8, 0.97],
        "accuracy": [0.5, 0.7, 0.9, 0.99],
        "low": [0.4, 0.6, 0.8, 0.95],
        "high": [0.6, 0.8, 0.95, 1.0],
    }
)
ANSWERS = pd.DataFrame(
    [
        ["A headline that is far too long to be written beside its bar in full", "World", 0.7, 0.1, 0.1, 0.1],
        ["Short", "Sports", 0.1, 0.7, 0.1, 0.1],
    ],
    columns=["text", "label", *LABELS],
)
DRAWINGS = {
    "class_balance": lambda: plots.class_balance(load_data(Recipe(data="sample"))),
    "length_histogram": lambda: plots.length_histogram([30, 50, 54, 60, 90]),
    "padding_pictures": lambda: plots.padding_pictures(
        {
            "padded to 512": np.eye(8, 512),
            "random, longest": np.eye(8, 60),
            "grouped, longest": np.ones((8, 50)),
        }
    ),
    "bars": lambda: plots.bars(
        pd.Series({"padded to 512": 9.7, "random": 1.5, "grouped": 1.04}),
        "tokens for each real one",
        "What padding costs",
        reference=1,
    ),
    "chain": lambda: plots.chain(
        {
            "text": "Stocks fall\nas oil climbs",
            "tokens": "[CLS] stocks\nfall as oil ...",
            "tensor": "101, 15768,\n2991, 2004, ...",
            "logits": "0.1  -0.2\n2.3  0.4",
            "answer": "Business",
        }
    ),
    "token_strip": lambda: plots.token_strip(
        "[CLS] zy ##nth ##eri ##x sue ##s hyderabad chip ##maker [SEP]".split(), list(range(30_000, 30_011))
    ),
    "reliability": lambda: plots.reliability(GROUPS, 0.07),
    "training_curves": lambda: plots.training_curves(run()),
    "training_curves, stopped early": lambda: plots.training_curves(
        replace(run(), history=run().history[:0], best_epoch=0, finished=False)
    ),
    "confusion_matrix": lambda: plots.confusion_matrix(REPORT),
    "bars, in groups": lambda: plots.bars(
        pd.DataFrame(
            {"BERT-base": [23.8, 85.0], "DistilBERT": [23.8, 42.5]}, index=["embeddings", "encoder"]
        ),
        "Parts",
        "millions",
    ),
    "clouds": lambda: plots.clouds(
        {"before training": np.eye(8)[:, :2], "after training": np.eye(8)[:, :2] * [100, -1000]},
        [0, 1, 2, 3] * 2,
    ),
    "probabilities": lambda: plots.probabilities(ANSWERS),
    "vram_bars": lambda: plots.vram_bars(TABLE, 4.0, {"linux": 0.19, "windows": 0.95}),
    "vram_timeline": lambda: plots.vram_timeline(
        timeline(trace_steps(CONFIG, [(8, 128)] * 3, StepOptions(implementation="foreach")))
    ),
    "gpu_picture": lambda: plots.gpu_picture(
        GTX_1650_TI,
        TABLE,
        "Bars: counted.\nCard: published facts.",
        {"linux": 0.19, "windows": 0.95},
        "DistilBERT, batch size 8: one training step",
    ),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_figure_is_readable(name):
    DRAWINGS[name]()
    check(plt.gcf())


BY_CLASS = {
    "class_balance": lambda given: plots.class_balance(given.news),
    "confusion_matrix": lambda given: plots.confusion_matrix(given.report),
    "clouds": lambda given: plots.clouds({"before": given.points}, given.labels, given.names),
    "probabilities": lambda given: plots.probabilities(given.answers),
}


def of_classes(names):
    """What the figures by class take, for classes of these names."""
    labels = np.arange(30 * len(names)) % len(names)
    points = np.random.default_rng(0).normal(size=(len(labels), 2))
    split = Dataset.from_dict({"label": labels}, features=Features(label=ClassLabel(names=names)))
    answers = pd.DataFrame(np.full((2, len(names)), 1 / len(names)), columns=names)
    answers.insert(0, "label", names[0])
    answers.insert(0, "text", ["Short", "A text that is far too long to be written beside its bar in full"])
    return SimpleNamespace(
        names=names,
        labels=labels,
        points=points,
        news=DatasetDict(train=split, test=split),
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
    """Read as a formula, the first cannot be drawn at all, and the others lose their signs."""
    plots.probabilities(ANSWERS.assign(text=[text, "Short"]))
    plots.bars(pd.Series({text: 1.0, "Short": 2.0}), "rows")
    plots.token_strip([text, "short"], [1, 2])
    plots.chain({"text": text, "tokens": "short"})
    for number in plt.get_fignums():
        figure = plt.figure(number)
        figure.canvas.draw()
        drawn = [words for words in figure.findobj(plt.Text) if words.get_text() == text]
        assert drawn and not any(words.get_parse_math() for words in drawn)


def test_no_two_of_twenty_classes_look_the_same():
    given = of_classes([f"class {number}" for number in range(20)])
    [axes] = plots.clouds({"before": given.points}, given.labels, given.names)
    paths = [points.get_paths()[0].vertices.round(3).tobytes() for points in axes.collections]
    assert len(set(zip(paths, map(bytes, (p.get_facecolor() for p in axes.collections))))) == 20
    bars = [container.patches[0] for container in plots.probabilities(given.answers).containers]
    assert len({(bar.get_facecolor(), bar.get_hatch()) for bar in bars}) == 20


@pytest.mark.parametrize("classes", [2, 4])
def test_guessing_is_the_logarithm_of_the_number_of_classes(classes):
    left, _ = plots.training_curves(run(classes))
    line = left.lines[-1]
    assert line.get_label() == f"guessing, ln {classes}"
    assert list(line.get_ydata()) == pytest.approx([np.log(classes)] * 2)


def test_ways_to_pad_are_on_one_scale():
    masks = {"padded to 512": np.eye(8, 512), "longest": np.eye(8, 90), "grouped": np.ones((8, 60))}
    panels = plots.padding_pictures(masks)
    assert {panel.get_xlim() for panel in panels} == {(-0.5, 511.5)}


def test_every_figure_of_the_package_is_tested_here():
    public = {
        name
        for name, value in vars(plots).items()
        if callable(value) and getattr(value, "__module__", "") == plots.__name__ and name[0] != "_"
    }
    assert public == {name.partition(",")[0] for name in DRAWINGS}


def test_bars_carry_the_numbers_they_are_given():
    table = TABLE
    axes = plots.vram_bars(table, 4.0)
    heights = [
        sum(bar.get_height() for container in axes.containers for bar in [container[i]])
        for i in range(len(table))
    ]
    totals = (table["total"] / 1024).tolist()
    assert heights == pytest.approx(totals) and {f"{total:.2f}" for total in totals} <= written(axes.figure)


@pytest.mark.parametrize("low, shown", [(0.4, 0.2), (0.05, 0.03)])
def test_reliability_shows_every_group(low, shown):
    groups = GROUPS.assign(low=[low, 0.6, 0.8, 0.95])
    axes = plots.reliability(groups, 0.07)
    assert axes.get_xlim() == axes.get_ylim() == (pytest.approx(shown), 1.02)


def test_grouped_bars_have_their_numbers_and_the_first_row_on_top():
    table = pd.DataFrame({"train": [90.0, 80.0], "test": [10.0, 20.0]}, index=["ham", "spam"])
    axes = plots.bars(table, "rows", "Rows", "{:.0f}")
    for container, name in zip(axes.containers, table.columns):
        assert container.get_label() == name and list(container.datavalues) == table[name].tolist()
    assert {"90", "80", "10", "20"} <= written(axes.figure) and axes.yaxis_inverted()


def test_reliability_has_confidence_across_and_accuracy_up():
    axes = plots.reliability(GROUPS, 0.07)
    points = axes.containers[0].lines[0]
    assert (
        list(points.get_xdata()) == GROUPS["confidence"].tolist()
        and list(points.get_ydata()) == GROUPS["accuracy"].tolist()
    )
    assert (axes.get_xlabel(), axes.get_ylabel()) == (
        "confidence",
        "accuracy",
    ) and "7 points" in axes.get_title()


def test_the_confusion_picture_has_the_truth_down():
    axes = plots.confusion_matrix(REPORT)
    counts = {(int(t.get_position()[1]), int(t.get_position()[0])): t.get_text() for t in axes.texts}
    assert counts[1, 0] == "1" and counts[0, 1] == "0"  # one Sports row was taken for World
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true", "predicted")


def test_the_confusion_picture_is_shaded_by_the_share_of_the_true_class():
    true = np.array([0] * 90 + [1] * 10)
    predicted = np.where(np.arange(100) % 10, true, 1 - true)  # one in ten is wrong
    axes = plots.confusion_matrix(score(np.eye(2)[predicted], true, [""] * 100, ["many", "few"]))
    assert np.asarray(axes.images[0].get_array()) == pytest.approx(np.array([[0.9, 0.1], [0.1, 0.9]]))
    assert axes.images[0].get_clim() == (0, 1) and [t.get_text() for t in axes.texts] == ["81", "9", "1", "9"]
    assert [t.get_color() for t in axes.texts] == ["white", "black", "black", "white"]
