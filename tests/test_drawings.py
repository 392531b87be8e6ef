"""The numbers in the drawings of notebooks 01, 03 and 10 are those of the package."""

import re
from pathlib import Path
from xml.etree import ElementTree

from agnews_helpers import Collator, Recipe, load_tokenizer
from agnews_helpers.runs import CHECKPOINTS_KEPT
from tests import test_notebooks as rules

PICTURES = Path(__file__).resolve().parent.parent / "notebooks" / "pictures"
CLASSES = ["World", "Sports", "Business", "Sci/Tech"]


def drawn(name):
    return ElementTree.parse(PICTURES / name).getroot()


def words(svg):
    return ["".join(text.itertext()) for text in svg.iter(rules.SVG + "text")]


def rows(svg, kind):
    """The numbers of each row, read from its group."""
    groups = [g for g in svg.iter(rules.SVG + "g") if g.get("class") == kind]
    return [[int(text) for text in words(group)] for group in groups]


def test_the_batch_is_what_tokenizer_and_collator_make_of_its_headlines():
    svg = drawn("batch.svg")
    labels = [label for [label] in rows(svg, "labels")]
    beside = [word for word in words(svg) if word in CLASSES]
    assert beside == [CLASSES[label] for label in labels]
    texts = [word for word in words(svg) if re.match(r"[A-Z]\w+ \w+ \w", word)]
    assert len(texts) == 5 and texts.pop().startswith("The others")
    assert texts[0] == "Stocks fall as oil climbs" and labels[0] == 2
    tokenizer = load_tokenizer(Recipe(model="mini"))
    ids = [tokenizer(text)["input_ids"] for text in texts]
    items = [{"input_ids": row, "label": label} for row, label in zip(ids, labels)]
    batch = Collator()(items)
    assert rows(svg, "ids") == batch["input_ids"].tolist()
    assert rows(svg, "mask") == batch["attention_mask"].tolist()
    assert labels == batch["labels"].tolist()
    many, longest = batch["input_ids"].shape
    shapes = {f"{many} rows × {longest} tokens", f"{many} × {longest}", f"{many}"}
    assert shapes <= {*words(svg)}
    assert f"{longest} tokens, as many as the longest row has." in words(svg)


def test_the_boxes_of_the_batch_say_what_is_read():
    """The tint of a cell: text or padding."""
    svg = drawn("batch.svg")
    uses = [use.get("href") for use in svg.iter(rules.SVG + "use")]
    mask = [number for row in rows(svg, "mask") for number in row]
    for read, padding in (("#real", "#empty"), ("#one", "#zero")):
        tints = [use for use in uses if use in (read, padding)]
        assert tints == [read if number else padding for number in mask]


def test_each_notebook_has_its_badge():
    svg = drawn("headline.svg")
    badges = [
        t.text for t in svg.iter(rules.SVG + "text") if t.get("class") == "number"
    ]
    assert sorted(map(int, badges)) == [*range(1, len(rules.NAMES) + 1)]


def test_the_stopped_run_is_that_of_the_notebook():
    """As many steps before the stop and after it; and the files that it lists."""
    [path] = [path for path in rules.NOTEBOOKS if "keep_a_long_run" in path.stem]
    printed = [
        "".join(output.get("text", ""))
        for cell in rules.read(path)[1]
        for output in cell["outputs"]
    ]
    stop, steps = re.search(
        r"Stopped after step (\d+) of (\d+) ", "".join(printed)
    ).groups()
    svg = drawn("stop_and_resume.svg")
    paths = [path.get("d") for path in svg.iter(rules.SVG + "path")]
    blocks = [path.count("M") for path in paths if "v30h-13z" in path]
    assert blocks == [int(stop), int(steps) - int(stop)]
    dots = [
        circle for circle in svg.iter(rules.SVG + "circle") if circle.get("r") == "6"
    ]
    triangles = [path.count("M") for path in paths if "l-7-13z" in path]
    assert [len(dots), *triangles] == blocks
    [files] = [text for text in printed if "manifest.json" in text]
    named = {word for word in words(svg) if re.fullmatch(r"\w+\.\w+", word)}
    assert len(named) == 3 and all(name in files for name in named)


def test_of_the_checkpoints_as_many_are_left_as_are_kept():
    svg = drawn("stop_and_resume.svg")
    uses = [use.get("href") for use in svg.iter(rules.SVG + "use")]
    assert uses == ["#gone", *["#point"] * CHECKPOINTS_KEPT]


def test_the_mask_stands_under_the_ids():
    """The same columns, and the numbers in the middle of their cells."""
    svg = drawn("batch.svg")
    boxes = {box.get("id"): box for box in svg.iter(rules.SVG + "rect")}
    widths = {
        int(boxes[name].get("width")) for name in ("real", "empty", "one", "zero")
    }
    assert len(widths) == 1
    uses = list(svg.iter(rules.SVG + "use"))
    places = {}
    for kind, names in {"ids": ("#real", "#empty"), "mask": ("#one", "#zero")}.items():
        cells = [use for use in uses if use.get("href") in names]
        places[kind] = [int(cell.get("x")) + min(widths) // 2 for cell in cells]
        groups = [g for g in svg.iter(rules.SVG + "g") if g.get("class") == kind]
        assert places[kind] == [int(text.get("x")) for g in groups for text in g]
    assert places["ids"] == places["mask"]
