"""The forward pass that a notebook writes by hand, its view of attention, its drawing.

The functions are read from the notebook's cells: what is tested is what is shown.
"""

import ast
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
import torch.nn.functional as F
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from agnews_helpers import Recipe, load_model, load_tokenizer
from tests import test_notebooks as rules

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NOTEBOOK = FOLDER / "04_look_inside_the_model.ipynb"
CELLS, CODE = rules.read(NOTEBOOK)
FOUR = ("embed", "attention", "feed_forward", "head")
SIZES = [
    dict(dim=32, n_layers=2, n_heads=2, hidden_dim=64),
    dict(dim=48, n_layers=3, n_heads=12, hidden_dim=96),
]


def functions():
    """The functions that the notebook defines, by name: their source."""
    trees = [(cell["text"], ast.parse(cell["text"])) for cell in CODE]
    return {
        node.name: "\n".join(
            ["@torch.no_grad()"] * bool(node.decorator_list)
            + [ast.get_source_segment(text, node)]
        )
        for text, tree in trees
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
    }


def by_hand(model, batch):
    """Run the notebook's own forward pass."""
    names = {"torch": torch, "F": F}
    for name in (*FOUR, "forward"):
        exec(functions()[name], names)
    return names["forward"](model, batch)


def random_model(size, kind):
    """A tiny DistilBERT in which every weight counts, biases and norms, too."""
    torch.manual_seed(3)
    config = DistilBertConfig(
        **size, vocab_size=50, max_position_embeddings=12, num_labels=4
    )
    model = DistilBertForSequenceClassification._from_config(
        config, attn_implementation=kind
    ).eval()
    for weight in model.parameters():
        weight.data.normal_(std=0.3)
    return model


def padded_batch(lengths=(9, 4, 1)):
    ids = torch.randint(1, 50, (len(lengths), max(lengths)))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.mark.parametrize("kind", ["eager", "sdpa"])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size['n_heads']} heads")
def test_the_logits_are_the_librarys(size, kind):
    model, batch = random_model(size, kind), padded_batch()
    logits = by_hand(model, batch)[0]
    with torch.no_grad():
        library = model(**batch).logits
    assert library.std() > 0.1  # so that rows and classes differ
    torch.testing.assert_close(logits, library, atol=1e-5, rtol=0)


def test_the_vectors_and_shares_that_are_looked_at_are_the_librarys():
    model, batch = random_model(SIZES[1], "eager"), padded_batch()
    _, vectors, shares = by_hand(model, batch)
    with torch.no_grad():
        out = model(**batch, output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(shares, torch.stack(out.attentions), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        vectors, torch.stack(out.hidden_states), atol=1e-5, rtol=0
    )
    assert shares[..., 1, :, :, 4:].max() == 0  # padding is not heard


def test_the_four_functions_are_about_25_lines():
    lines = [functions()[name].splitlines() for name in FOUR]
    assert sum(bool(line.strip()) for part in lines for line in part) <= 25


@pytest.fixture
def view():
    """The cells with the table and the sliders, run on made-up shares."""
    names = {
        "tokens": ["[CLS]", "oil", "[SEP]"],
        "config": DistilBertConfig(n_layers=2, n_heads=4),
        "shares": torch.rand(2, 1, 4, 3, 3),
        "layer": 0,
        "number": 2,
    }
    for cell in CODE:
        if "def table(" in cell["text"] or "widgets.HTML(" in cell["text"]:
            exec(cell["text"], names)
    return names


def numbers(view):
    return re.findall(r">(\d\.\d\d)<", view["view"].value)


def test_the_sliders_choose_layer_and_head(view):
    def expected(layer, head):
        return [f"{share:.2f}" for share in view["shares"][layer, 0, head].flatten()]

    assert numbers(view) == expected(0, 2)  # where the search ended
    view["which_layer"].value = 2
    assert numbers(view) == expected(1, 2)
    view["which_head"].value = 4
    assert numbers(view) == expected(1, 3)


def light(colour):
    """The relative luminance of a colour of 0 to 255 (WCAG 2)."""
    parts = [c / 255 for c in colour]
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts
    ]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear))


@pytest.mark.parametrize("percent", range(0, 101, 5))
def test_a_number_can_be_read_on_its_shade(view, percent):
    """Each cell has both colours, so the theme changes nothing."""
    cell = view["shade"](percent / 100)
    red, green, blue, text = re.search(
        r"background: rgb\((\d+), (\d+), (\d+)\); color: #(\w)", cell
    ).groups()
    shades = light(map(int, (red, green, blue))), float(text == "f")
    assert (max(shades) + 0.05) / (min(shades) + 0.05) >= 4.5


def test_the_drawing_has_the_real_numbers():
    svg = ElementTree.parse(FOLDER / "pictures" / "forward_pass.svg").getroot()
    words = ["".join(text.itertext()) for text in svg.iter(rules.SVG + "text")]
    tokenizer = load_tokenizer(Recipe(model="mini"))
    ids = tokenizer("Stocks fall as oil climbs")["input_ids"]
    assert {*map(str, ids), *tokenizer.convert_ids_to_tokens(ids)} <= {*words}
    drawn, mini = DistilBertConfig(), load_model(Recipe(model="mini")).config
    rows, heads = len(ids), drawn.n_heads
    shapes = {f"{rows} × {drawn.dim}", f"{heads} × {rows} × {rows}"}
    assert shapes | {f"{rows} × {drawn.hidden_dim:,}"} <= {*words}
    assert mini.n_heads == heads and mini.n_layers == drawn.n_layers == 6
    note = f"mini has {mini.dim} instead of {drawn.dim}, and {mini.hidden_dim:,}"
    assert f"{note} instead of {drawn.hidden_dim:,}." in words


def test_the_blue_lines_are_as_wide_as_the_shares_that_the_notebook_prints():
    svg = ElementTree.parse(FOLDER / "pictures" / "forward_pass.svg").getroot()
    [lines] = [g for g in svg.iter(rules.SVG + "g") if g.get("stroke-linecap")]
    widths = torch.tensor([float(line.get("stroke-width")) for line in lines])
    [cell] = [cell for cell in CODE if cell["text"].startswith("taken = ")]
    table = "".join(cell["outputs"][0]["data"]["text/plain"])
    printed = torch.tensor([float(share) for share in re.findall(r"\d\.\d\d", table)])
    assert len(printed) == 7
    torch.testing.assert_close(widths / widths.sum(), printed, atol=0.01, rtol=0)
