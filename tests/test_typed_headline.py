"""The box of notebook 02 in which a reader types a headline and sees its pieces."""

import re

import pytest

from agnews_helpers import load_tokenizer, recipe_for_this_machine
from tests import test_notebooks as rules

[PATH] = [path for path in rules.NOTEBOOKS if "tokenize_the_news" in path.stem]
[CELL] = [cell for cell in rules.read(PATH)[1] if "widgets.Text(" in cell["text"]]
BOX = re.compile(r"<span style=.background: (#\w+); color: (#\w+);[^>]*>([^<]*)</span>")


@pytest.fixture(scope="module")
def names():
    """The names that the cell leaves, after the cells before it."""
    names = {
        "tokenizer": load_tokenizer(recipe_for_this_machine()),
        "text": "Stocks fall as oil climbs",
    }
    exec(CELL["text"], names)
    return names


def pieces(names, typed):
    names["headline"].value = typed
    return [piece for _, _, piece in BOX.findall(names["view"].value)]


def test_the_boxes_follow_what_is_typed(names):
    assert pieces(names, "Zyntherix sues") == [
        "z",
        "##yn",
        "##ther",
        "##ix",
        "sue",
        "##s",
    ]
    assert names["view"].value.endswith("6 pieces")
    assert pieces(names, "Stocks fall") == ["stocks", "fall"]
    assert names["view"].value.endswith("2 pieces")


def test_an_unknown_word_has_another_colour(names):
    assert pieces(names, "profit📈 profit") == ["[UNK]", "profit"]
    unknown, known = BOX.findall(names["view"].value)
    assert unknown[0] != known[0] and unknown[1] == known[1] == "#000"


def test_what_is_typed_is_text_and_not_html(names):
    assert "<script" not in names["view"].value
    found = pieces(names, "<script>&")
    assert found == ["&lt;", "script", "&gt;", "&amp;"]
    assert "<script" not in names["view"].value


def test_nothing_typed_is_no_error(names):
    assert pieces(names, "") == [] and names["view"].value.endswith("0 pieces")
