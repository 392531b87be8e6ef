"""The memory mountain: its scrubber, its knobs, its goal, and its picture of a step.

The cells are the notebook's own: what is tested is what is shown.
"""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from transformers import DistilBertConfig

from agnews_helpers import budgeting, plots
from tests import test_notebooks as rules
from vram_budget import (
    GTX_1650_TI,
    StepOptions,
    scaled_trace,
    step_budget,
    timeline,
    trace,
    usable_mib,
)

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
CELLS, CODE = rules.read(FOLDER / "07_budget_the_vram.ipynb")
CONFIG = DistilBertConfig(num_labels=4)
PARAMETERS = 66_956_548
GIB = 2**30
STEP = budgeting.training_step()
MOUNTAIN = (
    "PARTS = ",
    "def third_step",
    "def phase_starts",
    "def label",
    "def ceiling",
    "def mountain",
    "from heapq",
    "def moment",
    "import ipywidgets",
    "def look",
    "from vram_budget import scaled_trace",
    "for knob in knobs:",
)
ROWS, TOKENS, ATTENTION, CHECKPOINTS = range(4)  # the knobs


def cell(beginning):
    """The one code cell that begins so."""
    [found] = [cell for cell in CODE if cell["text"].startswith(beginning)]
    return found


@pytest.fixture(scope="module")
def notebook():
    """The notebook's mountain: its names after its cells have run."""
    names = {
        "GTX_1650_TI": GTX_1650_TI,
        "StepOptions": StepOptions,
        "config": CONFIG,
        "plots": plots,
        "step": STEP,
        "timeline": timeline,
        "worst": usable_mib(GTX_1650_TI, "windows")[0] / 1024,
    }
    for beginning in MOUNTAIN:
        exec(cell(beginning)["text"], names)
    return names


def turn(notebook, rows=8, tokens=256, attention="sdpa", checkpointing="off"):
    """Turn all knobs; return what the reader then sees."""
    for knob, value in zip(notebook["knobs"], (rows, tokens, attention, checkpointing)):
        knob.value = value
    return notebook["view"].value


def svg(notebook):
    return ElementTree.fromstring(
        re.search("<svg.*</svg>", notebook["view"].value, re.DOTALL)[0]
    )


def dot(notebook):
    """Where the line at the event ends, in units of the drawing."""
    [found] = svg(notebook).iter("circle")
    return float(found.get("cx")), float(found.get("cy"))


def test_a_knob_goes_to_the_peak_of_its_step(notebook):
    turn(notebook, 4, 128)
    shown = turn(notebook, 16, 512)
    budget = step_budget(STEP, CONFIG, 16, 512)
    flops = scaled_trace(STEP, CONFIG, 16, 512).flops
    assert f"at worst: {budget.verdict}; at best: {budget.at_best}<" in shown
    assert f"takes {budget.reserved / 1024:.2f} GiB" in shown
    assert f"{flops / 1e12:.2f} T operations" in shown
    peak, _ = scaled_trace(STEP, CONFIG, 16, 512).peak()
    height = notebook["now"]["memory"].sum(axis=1)
    assert height[notebook["scrubber"].value] * GIB == pytest.approx(peak, rel=1e-6)
    assert f"event {notebook['scrubber'].value}<" in shown


def test_each_knob_changes_what_is_seen(notebook):
    seen = [
        turn(notebook),
        turn(notebook, rows=4),
        turn(notebook, tokens=512),
        turn(notebook, attention="eager"),
        turn(notebook, checkpointing="on"),
    ]
    assert len(set(seen)) == len(seen)


def test_the_scrubber_says_what_happens_and_what_lives(notebook):
    turn(notebook)
    events, scrubber = notebook["now"]["events"], notebook["scrubber"]
    assert scrubber.max == len(events) - 1 and len(events) > 700
    size, spike = max((a.size, i) for i, (a, made) in enumerate(events) if made)
    scrubber.value = spike
    shown = notebook["view"].value
    assert size == 30_522 * 768 * 4
    made = "made 89.4 MiB, <i>embedding_dense_backward</i> of embeddings<"
    assert f"event {spike}</b>: {made}" in shown
    assert shown.index("that live:") < shown.index("89.4 MiB", shown.index("live:"))
    scrubber.value = spike + 60  # the update: the spike's tensor is gone
    assert "released" in notebook["view"].value
    assert "89.4 MiB" not in notebook["view"].value


def test_the_line_ends_on_the_mountain(notebook):
    """At each event the dot is as high as the memory, whatever the scale."""
    turn(notebook, 16, 512, "eager")
    height = notebook["now"]["memory"].sum(axis=1)
    top = 1.05 * height.max()
    for at in (0, 100, len(height) // 2, len(height) - 1):
        notebook["scrubber"].value = at
        x, y = dot(notebook)
        assert x == pytest.approx(600 * at / len(height), abs=1)
        assert y == pytest.approx(300 - 300 * height[at] / top, abs=1)


def test_the_layers_of_the_drawing_are_the_parts(notebook):
    """Each is as high, event by event, as its part and those below it."""
    turn(notebook)
    paths = [path for path in svg(notebook).iter("path") if path.get("fill")]
    memory = notebook["now"]["memory"]
    assert [path.get("fill") for path in paths] == [
        plots.PART_COLOURS[part] for part in reversed(notebook["PARTS"])
    ]
    for path, tops in zip(reversed(paths), memory.cumsum(axis=1).T.values):
        drawn = [int(y) for y in re.findall(r"V(\d+)", path.get("d"))][:-1]
        assert drawn == [round(300 - 300 * top / 4.6) for top in tops]


def test_the_ceiling_stands_where_windows_leaves_off(notebook):
    turn(notebook)
    [band] = svg(notebook).iter("rect")
    bottom = float(band.get("y")) + float(band.get("height"))
    assert float(band.get("y")) == pytest.approx(300 - 300 * 4 / 4.6, abs=1)
    assert bottom == pytest.approx(300 - 300 * 2.93 / 4.6, abs=1)
    assert "left at worst: 2.93 GiB" in notebook["view"].value


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_phases_are_whole(notebook, attention, checkpointing):
    """All that is made is in its phase; gradients go in the update alone."""
    options = StepOptions(attention=attention, checkpointing=checkpointing)
    events, _ = notebook["third_step"](trace(STEP, CONFIG, [(2, 64)] * 3, options))
    starts = notebook["phase_starts"](events)
    assert list(starts.values()) == sorted(starts.values())
    for at, (allocation, made) in enumerate(events):
        phase = [name for name, start in starts.items() if start <= at][-1]
        if made:
            assert allocation.phase == phase  # fused Adam makes nothing
        elif phase == "update":
            assert allocation.category in ("gradients", "activations")
        else:
            assert allocation.category != "gradients"


def test_the_goal_has_the_answer_that_the_exercise_gives():
    """Of the knobs' four settings two fit at worst; the two parts need least."""

    def found(step, options):
        budget = step_budget(step, CONFIG, 16, 512, options)
        flops = scaled_trace(step, CONFIG, 16, 512, options).flops
        return budget.verdict, round(flops / 1e12, 2)

    def knobs(attention, checkpointing):
        options = StepOptions(attention=attention, checkpointing=checkpointing)
        return found(STEP, options)

    assert knobs("sdpa", False) == ("spills", 2.36)
    assert knobs("eager", False) == ("spills", 2.32)
    assert knobs("sdpa", True) == ("fits", 3.13)
    assert knobs("eager", True) == ("fits", 3.09)
    halves = found(budgeting.training_step(8), StepOptions(scalable=False))
    assert halves == ("fits", 2.36)
    text = "".join(cell("from IPython.display")["outputs"][0]["data"]["text/html"])
    shown = re.findall(r"<td>(\d\.\d\d)</td>\s*<td>\d\.\d to", text)
    assert shown == ["2.36", "3.13", "2.32", "3.09", "2.36"]


@pytest.mark.parametrize("tokens", [64, 128, 256, 512])
def test_the_formula_is_the_peak_but_for_what_lives_for_a_moment(tokens):
    traced = trace(STEP, CONFIG, [(8, tokens)] * 3)
    activations = timeline(traced)["activations"].max() * 2**20
    formula = max(16 * PARAMETERS, 12 * PARAMETERS + activations)
    peak, _ = traced.peak()
    assert 0 < peak / formula - 1 < 0.05
    at_b = 16 * PARAMETERS > 12 * PARAMETERS + activations
    assert at_b == (tokens == 64)  # as the text says


def test_the_real_step_is_weighed_as_the_picture_draws_it():
    """4 bytes at first, 8 after the backward pass, 16 after the update, then 12."""
    printed = "".join(
        "".join(output["text"])
        for beginning in ("weights = list", "model(input_ids")
        for output in cell(beginning)["outputs"]
    )
    numbers = [re.findall(r"\d\.\d\d", line) for line in printed.splitlines()]
    whole = [sum(map(float, line)) for line in numbers]
    expected = [size * PARAMETERS / GIB for size in (4, 8, 16, 12)]
    assert whole == pytest.approx(expected, abs=0.01)


def test_the_drawing_is_to_scale():
    """Weights, means and gradients are as high as 4, 8 and 4 bytes are."""
    svg = ElementTree.parse(FOLDER / "pictures" / "step_memory.svg").getroot()
    heights = {
        rect.get("fill"): float(rect.get("height"))
        for rect in svg.iter(rules.SVG + "rect")
    }
    means, weights = heights[plots.GREEN], heights[plots.BLUE]
    [gradients] = [
        path.get("d")
        for path in svg.iter(rules.SVG + "path")
        if path.get("fill") == plots.PART_COLOURS["gradients"]
    ]
    _, foot, _, head, *_ = map(float, re.findall(r"\d+", gradients))
    assert means == 2 * weights == 2 * (foot - head)


def test_the_table_of_the_early_answer_says_what_the_text_says():
    """Only eager attention at 512 tokens is at the edge."""
    [html] = [
        "".join(output["data"]["text/html"])
        for output in cell("from vram_budget import budget_table")["outputs"]
    ]
    assert html.count("spills") == 1 and html.count("fits") == 15
