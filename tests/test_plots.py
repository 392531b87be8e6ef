"""Figures are drawn, labelled, and nothing in them is written over something else."""
import itertools
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from transformers import DistilBertConfig

from agnews_helpers import GTX_1650_TI, LABELS, Recipe, budget_table, load_agnews, plots, score
from agnews_helpers import Setup, trace_steps
from agnews_helpers.training import Run
from agnews_helpers.vram.budget import timeline

CONFIG = DistilBertConfig(num_labels=4)
TABLE = budget_table(CONFIG, lengths=(64, 512))
MAP = pd.DataFrame({64: [1000.0, 1200.0, 9000.0], 512: [1200.0, 2200.0, 16000.0]}, index=[1, 8, 64])
FRONTIER = pd.DataFrame({"linux": [64, 8], "windows": [8, 1]}, index=[64, 512])


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
            ticks = [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high and tick.label1.get_visible()]
            assert axis.label.get_text() or not any(re.match(r"[\d.,]", tick.get_text()) for tick in ticks)
            texts += [axis.label, *ticks]
        legend = axes.get_legend()
        boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in texts if t.get_text() and t.get_visible()]
        if legend:
            boxes.append(("legend", legend.get_window_extent(renderer)))
        for (one, a), (two, b) in itertools.combinations(boxes, 2):
            assert not a.shrunk(0.9, 0.8).overlaps(b.shrunk(0.9, 0.8)), f"{one!r} over {two!r}"
        for name, box in boxes:
            assert figure.bbox.x0 - 1 <= box.x0 and box.x1 <= figure.bbox.x1 + 1, f"{name!r} leaves the figure"


def run():
    loss = pd.DataFrame({"loss": np.linspace(1.4, 0.3, 192)}, index=pd.RangeIndex(1, 193, name="step"))
    history = pd.DataFrame({"train_loss": [1.3, 1.1, 0.6, 0.4], "validation_loss": [1.2, 0.8, 0.5, 0.3],
                            "validation_accuracy": [0.8, 0.9, 1.0, 1.0]}, index=pd.Index([1, 2, 3, 4], name="epoch"))
    return Run(None, None, history, loss, 4, 60.0)


REPORT = score(np.eye(4)[[0, 1, 2, 3, 0, 2]] * 3.0, np.array([0, 1, 2, 3, 1, 3]), list("abcdef"))
GROUPS = pd.DataFrame({"confidence": [0.4, 0.6, 0.8, 0.97], "accuracy": [0.5, 0.7, 0.9, 0.99], "low": [0.4, 0.6, 0.8, 0.95], "high": [0.6, 0.8, 0.95, 1.0]})
ANSWERS = pd.DataFrame([["A headline that is far too long to be written beside its bar in full", "World", 0.7, 0.1, 0.1, 0.1],
                        ["Short", "Sports", 0.1, 0.7, 0.1, 0.1]], columns=["text", "label", *LABELS])
DRAWINGS = {
    "class_balance": lambda: plots.class_balance(load_agnews(Recipe(data="sample"))),
    "length_histogram": lambda: plots.length_histogram([30, 50, 54, 60, 90]),
    "padding_pictures": lambda: plots.padding_pictures({"padded to 512": np.eye(8, 512), "random, longest": np.eye(8, 60), "grouped, longest": np.ones((8, 50))}),
    "bars": lambda: plots.bars(pd.Series({"padded to 512": 9.7, "random": 1.5, "grouped": 1.04}), "tokens for each real one", "What padding costs", reference=1),
    "chain": lambda: plots.chain({"text": "Stocks fall\nas oil climbs", "tokens": "[CLS] stocks\nfall as oil ...", "tensor": "101, 15768,\n2991, 2004, ...",
                                  "logits": "0.1  -0.2\n2.3  0.4", "answer": "Business"}),
    "token_strip": lambda: plots.token_strip("[CLS] zy ##nth ##eri ##x sue ##s hyderabad chip ##maker [SEP]".split(), list(range(30_000, 30_011))),
    "reliability": lambda: plots.reliability(GROUPS, 0.07),
    "training_curves": lambda: plots.training_curves(run()),
    "training_curves, stopped early": lambda: plots.training_curves(replace(run(), history=run().history[:0], best_epoch=0, finished=False)),
    "continued_run": lambda: plots.continued_run(run(), replace(run(), steps=run().steps[:17]), run()),
    "confusion_matrix": lambda: plots.confusion_matrix(REPORT),
    "bars_side_by_side": lambda: plots.bars_side_by_side(pd.DataFrame({"BERT-base": [23.8, 85.0], "DistilBERT": [23.8, 42.5]}, index=["embeddings", "encoder"]), "Parts", "millions"),
    "clouds": lambda: plots.clouds({"before training": np.eye(8)[:, :2], "after training": np.eye(8)[:, :2] * [100, -1000]}, [0, 1, 2, 3] * 2),
    "probabilities": lambda: plots.probabilities(ANSWERS),
    "vram_bars": lambda: plots.vram_bars(TABLE, 4.0, {"linux": 0.19, "windows": 0.95}),
    "vram_timeline": lambda: plots.vram_timeline(timeline(trace_steps(CONFIG, [(8, 128)] * 3, Setup(implementation="foreach")))),
    "batch_map": lambda: plots.batch_map({name: MAP for name in ("sdpa", "eager")}, {name: FRONTIER for name in ("sdpa", "eager")}),
    "gpu_picture": lambda: plots.gpu_picture(GTX_1650_TI, TABLE, "Bars: counted.\nCard: published facts.", {"linux": 0.19, "windows": 0.95})}


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_figure_is_readable(name):
    DRAWINGS[name]()
    check(plt.gcf())


def test_every_figure_of_the_package_is_tested_here():
    public = {name for name, value in vars(plots).items() if callable(value) and getattr(value, "__module__", "") == plots.__name__ and name[0] != "_"}
    assert public == {name.partition(",")[0] for name in DRAWINGS}


def test_bars_carry_the_numbers_they_are_given():
    table = TABLE
    axes = plots.vram_bars(table, 4.0)
    heights = [sum(bar.get_height() for container in axes.containers for bar in [container[i]]) for i in range(len(table))]
    assert heights == pytest.approx((table["total"] / 1024).tolist())


def test_reliability_has_confidence_across_and_accuracy_up():
    axes = plots.reliability(GROUPS, 0.07)
    points = axes.containers[0].lines[0]
    assert list(points.get_xdata()) == GROUPS["confidence"].tolist() and list(points.get_ydata()) == GROUPS["accuracy"].tolist()
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("confidence", "accuracy") and "7 points" in axes.get_title()


def test_the_confusion_picture_has_the_truth_down():
    axes = plots.confusion_matrix(REPORT)
    written = {(int(t.get_position()[1]), int(t.get_position()[0])): t.get_text() for t in axes.texts}
    assert written[1, 0] == "1" and written[0, 1] == "0"  # one Sports row was taken for World
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true", "predicted")
